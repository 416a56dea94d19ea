"""Steps of `m_config` on several devices, which `test_one_loss.py` runs on eight of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import osgd_jax

D, K, STEPS = 8, 2, 4
MESH = jax.make_mesh((D,), ("d",), axis_types=(AxisType.Auto,))
rng = np.random.default_rng(0)
PARAMS = {"w": rng.normal(size=(3, 2)).astype(np.float32), "b": np.zeros(2, np.float32)}
INPUTS = rng.normal(size=(32, 3)).astype(np.float32)


def loss(params, inputs, task):
    outputs = jnp.tanh(inputs @ params["w"] + params["b"])
    return jnp.mean((outputs - task) ** 2)


def steps(params, inputs, axis_name=None, varying=False):
    """The updates of some steps, and the state after them."""
    tx = osgd_jax.m_config(0.1, K, axis_name=axis_name)
    state, updates = tx.init(params), []
    own = jax.lax.pcast(params, "d", to="varying") if varying else params
    for step in range(STEPS):
        grads = jax.grad(loss)(own, inputs * (1 + step), step % K)
        update, state = tx.update(grads, state, params, task=step % K)
        updates.append(update)
    return updates, state


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), actual, expected
    )


def mapped(check_vma=True, **kwargs):
    return jax.jit(
        jax.shard_map(
            lambda params, inputs: steps(params, inputs, **kwargs),
            mesh=MESH,
            in_specs=(P(), P("d")),
            out_specs=P(),
            check_vma=check_vma,
        )
    )


if __name__ == "__main__":
    assert len(jax.devices()) == D
    expected = jax.jit(steps)(PARAMS, INPUTS)
    assert_close(mapped(axis_name="d", varying=True)(PARAMS, INPUTS), expected)
    assert_close(mapped(check_vma=False, axis_name="d")(PARAMS, INPUTS), expected)

    of_two = jax.pmap(
        lambda params, inputs: steps(params, inputs, axis_name="d"),
        axis_name="d",
        in_axes=(None, 0),
        devices=jax.devices()[:2],
    )
    found = of_two(PARAMS, INPUTS.reshape(2, 16, 3))
    for device in range(2):
        assert_close(jax.tree.map(lambda leaf, device=device: leaf[device], found), expected)

    with pytest.raises(ValueError, match=r"check_vma=False.*Pass axis_name='d'"):
        mapped(check_vma=False)(PARAMS, INPUTS)
    with pytest.raises(ValueError, match=r"the same on all its devices.*pcast"):
        mapped(axis_name="d")(PARAMS, INPUTS)
