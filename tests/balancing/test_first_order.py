"""To first order, the step of a later output changes no earlier loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import nets


def branched_net():
    rng = np.random.default_rng(0)
    params = {
        "stem": rng.normal(size=(3, 6)),
        "middle": rng.normal(size=(6, 6)),
        "late": rng.normal(size=(6, 6)),
        "heads": [rng.normal(size=(6, 2)) for _ in range(3)],
    }
    params = jax.tree.map(jnp.asarray, params)
    inputs, labels = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.integers(2, size=8))

    def losses(params):
        hidden, result = inputs, []
        for layer, head in zip(("stem", "middle", "late"), params["heads"], strict=True):
            hidden = jnp.tanh(hidden @ params[layer])
            result.append(cross_entropy(hidden @ head, labels))
        return tuple(result)

    return losses, params


def width_nested_net():
    net = nets.WidthNestedResNet(
        num_classes=2,
        in_channels=2,
        spatial_dims=1,
        norm="group",
        widths=(4,),
        blocks=(1,),
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(p + rng.uniform(-0.3, 0.3, size=p.shape), jnp.float64), params
    )
    inputs, labels = jnp.asarray(rng.normal(size=(4, 8, 2))), jnp.asarray(rng.integers(2, size=4))

    def losses(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(inputs)
        return tuple(cross_entropy(output, labels) for output in logits)

    return losses, params


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1))


@pytest.mark.parametrize("make_net", [branched_net, width_nested_net])
def test_later_outputs_change_no_earlier_loss(make_net, x64):
    losses, params = make_net()
    losses = jax.jit(losses)
    grads = jax.jit(osgd_jax.task_grads(losses))(params)
    tx = osgd_jax.orthogonalize()
    update = jax.jit(lambda grads: tx.update(grads, tx.init(params), params)[0])

    def only(tasks):
        """The task gradients with those of other tasks set to zero."""
        keep = jnp.asarray([task in tasks for task in range(3)], float)
        return jax.tree.map(
            lambda leaf: jnp.einsum("k,k...->k...", keep, leaf), osgd_jax.densify(grads)
        )

    reach = jax.tree.map(
        lambda leaf: leaf.tasks, grads, is_leaf=lambda leaf: isinstance(leaf, osgd_jax.TaskRows)
    )

    def step_of(task):
        """The part of the step that is there for this task: the last of the first `task` + 1."""
        until, before = (
            update(osgd_jax.to_task_rows(only(range(n)), reach)) for n in (task + 1, task)
        )
        return jax.tree.map(jnp.subtract, until, before)

    def change(step, size):
        def losses_at(size):
            return jnp.stack(losses(jax.tree.map(lambda p, u: p + size * u, params, step)))

        return (losses_at(size) - losses_at(-size)) / (2 * size)

    sum_grads = jax.tree.map(lambda leaf: leaf.sum(axis=0), osgd_jax.densify(grads))
    scale = np.abs(change(sum_grads, 1e-5)).max()
    for task in range(3):
        slopes = np.asarray(change(step_of(task), 1e-5))
        np.testing.assert_allclose(slopes[:task], 0, atol=1e-7 * scale)
        assert slopes[task] > 1e-3 * scale
    # The gradient itself does change them.
    assert np.abs(change(jax.tree.map(lambda g: g[2], only([2])), 1e-5)[:2]).min() > 1e-3 * scale
