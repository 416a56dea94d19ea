"""A net with three outputs, and what task gradients are compared with."""

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax import TaskRows


def parameters():
    """Random, so that no gradient is zero by chance."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (3, 4), "middle": (4, 4), "late": (4, 4), "heads": [(4,)] * 3, "unused": (2,)}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32),
        shapes,
        is_leaf=lambda node: isinstance(node, tuple),
    )


EXITS = {"stem": (0, 1, 2), "middle": (1, 2), "late": (2,), "heads": [(0,), (1,), (2,)]}
EXITS["unused"] = ()
INPUTS = jnp.asarray(np.random.default_rng(1).normal(size=(5, 3)), jnp.float32)


def exits(params, layer, inputs=INPUTS):
    hidden = layer(inputs, params["stem"])
    outputs = [hidden @ params["heads"][0]]
    for name, head in (("middle", params["heads"][1]), ("late", params["heads"][2])):
        hidden = layer(hidden, params[name])
        outputs.append(hidden @ head)
    return [jnp.mean(output**2) for output in outputs]


def plain(hidden, kernel):
    return jnp.tanh(hidden @ kernel)


def branched(params, inputs=INPUTS):
    return tuple(exits(params, plain, inputs))


def jacobian(losses):
    def stacked(*args):
        return jnp.stack([jnp.asarray(loss) for loss in losses(*args)])

    return jax.jacrev(stacked)


def assert_trees_close(actual, expected, **kwargs):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **kwargs), actual, expected)


def nonzero_rows(dense):
    return jax.tree.map(
        lambda leaf: tuple(i for i, row in enumerate(np.asarray(leaf)) if np.any(row != 0)), dense
    )


def is_rows(node):
    return isinstance(node, TaskRows)
