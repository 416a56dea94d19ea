"""Steps on several devices, for `test_sharding.py`, which runs this on eight forced CPU devices.

Each case compares a step over a mesh with the same step on one device.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import osgd_jax

rng = np.random.default_rng(0)
PARAMS = jax.tree.map(
    lambda shape: rng.normal(size=shape).astype(np.float32),
    {"stem": (4, 8), "conv": (2, 2, 8, 8), "heads": [(8,), (8,), (8,), (8,), (8,)]},
    is_leaf=lambda node: isinstance(node, tuple),
)
INPUTS = rng.normal(size=(16, 4)).astype(np.float32)
TX = osgd_jax.osgd(0.1, momentum=0.9)


def losses(params, inputs):
    hidden = jnp.tanh(inputs @ params["stem"])
    hidden = hidden + jnp.tanh(jnp.einsum("bi,hwio->bo", hidden, params["conv"]))
    return tuple(jnp.mean((hidden @ head) ** 2) for head in params["heads"])


def step(params, inputs, loss_fn=losses):
    values, grads = osgd_jax.value_and_task_grads(loss_fn)(params, inputs)
    updates, _ = TX.update(grads, TX.init(params), params)
    dense, _ = TX.update(osgd_jax.densify(grads), TX.init(params), params)
    return jnp.stack(values), grads, updates, dense


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
    )


EXPECTED = jax.jit(step)(PARAMS, INPUTS)


def check_sharded_inputs(axis_type):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(axis_type,))
    specs = [
        (P(), P(), P("d")),  # data parallel
        (P(None, "d"), P(None, None, None, "d"), P()),  # parameters over their last axis
        (P(None, "d"), P(None, None, "d"), P()),  # and over another one
    ]
    with jax.set_mesh(mesh):
        for stem, conv, data in specs:
            shardings = {"stem": stem, "conv": conv, "heads": [P()] * 5}
            shardings = jax.tree.map(
                lambda spec: NamedSharding(mesh, spec),
                shardings,
                is_leaf=lambda node: isinstance(node, P),
            )
            params = jax.device_put(PARAMS, shardings)
            inputs = jax.device_put(INPUTS, NamedSharding(mesh, data))
            if axis_type == AxisType.Explicit and conv == P(None, None, "d"):
                continue  # the net itself, contracting a sharded axis, would need out_sharding=
            assert_close(jax.jit(step)(params, inputs), EXPECTED)


def check_shard_map(averaged_in_loss):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def averaged(params, inputs):
        return tuple(jax.lax.pmean(loss, "d") for loss in losses(params, inputs))

    def local(params, inputs):
        if averaged_in_loss:
            return step(params, inputs, averaged)
        own = jax.tree.map(lambda p: jax.lax.pcast(p, "d", to="varying"), params)
        values, grads = osgd_jax.value_and_task_grads(losses)(own, inputs)
        values, grads = jax.lax.pmean((jnp.stack(values), grads), "d")
        updates, _ = TX.update(grads, TX.init(params), params)
        dense, _ = TX.update(osgd_jax.densify(grads), TX.init(params), params)
        return values, grads, updates, dense

    mapped = jax.shard_map(local, mesh=mesh, in_specs=(P(), P("d")), out_specs=P())
    assert_close(jax.jit(mapped)(PARAMS, INPUTS), EXPECTED)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    check_sharded_inputs(AxisType.Auto)
    check_sharded_inputs(AxisType.Explicit)
    check_shard_map(averaged_in_loss=True)
    check_shard_map(averaged_in_loss=False)
