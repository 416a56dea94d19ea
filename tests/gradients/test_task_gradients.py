"""Task gradients: values against `jax.jacrev`, and reach against the rows that are not zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import nets
from tests.helpers.three_exits import (
    EXITS,
    assert_trees_close,
    branched,
    exits,
    is_rows,
    jacobian,
    nonzero_rows,
    parameters,
    plain,
)


def scanned(hidden, kernel):
    hidden = jnp.tanh(hidden @ kernel)
    return jax.lax.scan(lambda h, k: (h + 0.1 * jnp.sin(h) * k, None), hidden, jnp.arange(3.0))[0]


def repeated(hidden, kernel):
    return jax.lax.fori_loop(0, 3, lambda i, h: h + 0.1 * jnp.sin(h), jnp.tanh(hidden @ kernel))


def conditional(hidden, kernel):
    hidden = hidden @ kernel
    return jax.lax.cond(hidden.sum() > 0, jnp.tanh, jnp.sin, hidden)


def switched(hidden, kernel):
    return jax.lax.switch(1, [jnp.cos, jnp.sin], hidden @ kernel)


@jax.custom_vjp
def _custom_vjp(hidden, kernel):
    return jnp.tanh(hidden @ kernel)


def _forward(hidden, kernel):
    result = jnp.tanh(hidden @ kernel)
    return result, (hidden, kernel, result)


def _backward(residuals, cotangent):
    hidden, kernel, result = residuals
    cotangent = cotangent * (1 - result**2)
    return cotangent @ kernel.T, hidden.T @ cotangent


_custom_vjp.defvjp(_forward, _backward)


@jax.custom_jvp
def _custom_jvp(hidden):
    return jnp.tanh(hidden)


_custom_jvp.defjvp(lambda primals, tangents: (jnp.tanh(*primals), 0.5 * tangents[0]))


LAYERS = {
    "plain": plain,
    "scan": scanned,
    "fori_loop": repeated,
    "cond": conditional,
    "switch": switched,
    "custom_vjp": _custom_vjp,
    "custom_jvp": lambda hidden, kernel: _custom_jvp(hidden @ kernel),
    "checkpoint": jax.checkpoint(plain),
    "jit": jax.jit(plain),
    "vmap": lambda hidden, kernel: jax.vmap(plain, (0, None))(hidden, kernel),
    "relu": lambda hidden, kernel: jax.nn.leaky_relu(hidden @ kernel),
    "where": lambda hidden, kernel: jnp.where(hidden @ kernel > 0, hidden @ kernel, 0.1),
}


def assert_as_jacrev(losses, params, exact=True):
    """Equal values; the reach that of the rows that are not zero."""
    values, grads = jax.jit(osgd_jax.value_and_task_grads(losses))(params)
    expected = jax.jit(jacobian(losses))(params)
    np.testing.assert_allclose(
        jnp.stack(jax.tree.leaves(values)).ravel(),
        jnp.stack(jax.tree.leaves(losses(params))).ravel(),
        rtol=1e-6,
    )
    assert_trees_close(osgd_jax.densify(grads), expected, rtol=1e-5, atol=1e-6)
    reach = osgd_jax.reach(losses)(params)
    found = [leaf.tasks for leaf in jax.tree.leaves(grads, is_leaf=is_rows)]
    assert found == jax.tree.leaves(reach, is_leaf=_is_reach)
    nonzero_reach = jax.tree.leaves(nonzero_rows(expected), is_leaf=_is_reach)
    for named, nonzero in zip(found, nonzero_reach, strict=True):
        assert named == nonzero if exact else set(named) >= set(nonzero)


def _is_reach(node):
    return isinstance(node, tuple) and all(isinstance(task, int) for task in node)


# ---------------------------------------------------------------------------------------------
# Values and reach
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", LAYERS)
def test_layers(layer):
    assert_as_jacrev(lambda params: exits(params, LAYERS[layer]), parameters())
    assert osgd_jax.reach(lambda params: exits(params, LAYERS[layer]))(parameters()) == EXITS


def scalars():
    return {name: jnp.float32(i + 1.5) for i, name in enumerate("abc")} | {"s": jnp.float32(0.7)}


def three(params):
    return [jnp.sin(params[name] * params["s"]) for name in "abc"]


def stacked(params):
    return jnp.stack(three(params))


SEPARATE = {
    "tuple": lambda p: tuple(three(p)),
    "list": three,
    "tuple with constants": lambda p: (three(p)[0], 2.0, three(p)[2]),
    "stack": stacked,
    "array": lambda p: jnp.array(three(p)),
    "concatenate": lambda p: jnp.concatenate([loss[None] for loss in three(p)]),
    "concatenate parts": lambda p: jnp.concatenate(
        [jnp.stack(three(p)[:2]), three(p)[2].reshape(1)]
    ),
    "scaled": lambda p: jnp.array([1.0, 2.0, 3.0]) * stacked(p) / 2,
    "shifted": lambda p: 1 - stacked(p),
    "function of": lambda p: jnp.log(2 + stacked(p)) ** 2,
    "converted": lambda p: stacked(p).astype(jnp.bfloat16).astype(jnp.float32),
    "times a parameter": lambda p: stacked(p) * p["s"],
    "masked": lambda p: jnp.where(p["s"] > jnp.arange(3) - 5, stacked(p), 0),
    "clipped": lambda p: jnp.clip(stacked(p), -2, 2),
    "nan_to_num": lambda p: jnp.nan_to_num(stacked(p)),
    "relu": lambda p: jax.nn.relu(stacked(p) + 3),
    "stack under jit": lambda p: jax.jit(stacked)(p),
    "jit after stack": lambda p: jax.jit(lambda losses: 2 * losses + 1)(stacked(p)),
    "jit in jit": lambda p: jax.jit(lambda losses: 2 * jax.jit(jnp.sin)(losses))(stacked(p)),
    "mean of examples": lambda p: jnp.stack([loss * jnp.ones(4) for loss in three(p)]).mean(1),
    "mean of two axes": lambda p: jnp.stack([loss * jnp.ones((2, 4)) for loss in three(p)]).mean(
        axis=(1, 2)
    ),
    "with examples' weights": lambda p: jnp.sum(
        jnp.stack([loss * jnp.ones(4) for loss in three(p)]) * jnp.arange(4.0), axis=-1
    ),
    "vmap": lambda p: jax.vmap(lambda a: jnp.sin(a * p["s"]))(jnp.stack([p[n] for n in "abc"])),
    "stop_gradient": lambda p: jnp.stack([three(p)[0], jax.lax.stop_gradient(three(p)[1]), 1.0]),
    "one depends on another": lambda p: (lambda t: jnp.stack([t[0], t[0] * t[1], t[2]]))(three(p)),
    "all coupled": lambda p: (lambda losses: losses * losses.sum())(stacked(p)),
    "the same thrice": lambda p: jnp.stack([three(p)[0]] * 3),
}

# Here each loss counts as reaching all that the array depends on.
TOGETHER = {
    "at set": lambda p: functools.reduce(
        lambda losses, i: losses.at[i].set(three(p)[i]), range(3), jnp.zeros(3)
    ),
    "reversed": lambda p: stacked(p)[::-1],
    "matrix product": lambda p: jnp.eye(3) @ stacked(p),
    "other axis": lambda p: jnp.stack([t * jnp.ones(4) for t in three(p)], axis=1).mean(axis=0),
    "checkpoint": jax.checkpoint(stacked),
    "scan": lambda p: jax.lax.scan(lambda c, a: (c, jnp.sin(a)), 0.0, stacked(p))[1],
}


@pytest.mark.parametrize("form", SEPARATE)
def test_losses_that_are_told_apart(form):
    assert_as_jacrev(SEPARATE[form], scalars())


@pytest.mark.parametrize("form", TOGETHER)
def test_losses_that_are_not_told_apart(form):
    assert_as_jacrev(TOGETHER[form], scalars(), exact=False)


def test_a_block_with_its_own_derivative_is_one_block():
    @jax.custom_vjp
    def pair(a, b):
        return jnp.sin(a), jnp.cos(b)

    pair.defvjp(
        lambda a, b: (pair(a, b), (a, b)),
        lambda ab, ct: (ct[0] * jnp.cos(ab[0]), -ct[1] * jnp.sin(ab[1])),
    )
    assert_as_jacrev(lambda p: pair(p["a"], p["b"]), scalars(), exact=False)


def test_carry_of_a_scan_reaches_what_it_carries():
    # Two independent carries: neither loss depends on the other's parameter.
    def losses(params):
        def step(carry, _):
            return (jnp.sin(carry[0]) * params["a"], carry[1] * params["b"]), None

        first, second = jax.lax.scan(step, (params["s"], jnp.float32(1.0)), length=3)[0]
        return first, second

    assert_as_jacrev(losses, scalars())
    reach = osgd_jax.reach(losses)(scalars())
    assert reach == {"a": (0,), "b": (1,), "c": (), "s": (0,)}


@pytest.mark.parametrize(
    ("family", "norm"), [("WidthNestedResNet", "group"), ("DepthNestedResNet", "batch")]
)
def test_nets(family, norm):
    net = getattr(nets, family)(
        num_classes=3,
        in_channels=2,
        spatial_dims=1,
        norm=norm,
        widths=(4,),
        blocks=(1,),
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda p: jnp.asarray(p + rng.uniform(0.05, 0.3, size=p.shape), p.dtype), params
    )
    inputs = jnp.asarray(rng.normal(size=(4, 16, 2)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)

    def losses(params):
        logits = nnx.merge(graphdef, params, rest, copy=True)(inputs)
        return tuple(jnp.sum(weights * jax.nn.log_softmax(output)) for output in logits)

    grads = jax.jit(osgd_jax.task_grads(losses))(params)
    expected = jax.jit(jacobian(losses))(params)
    # Exactly zero are rows without a path; a bias before normalisation has one, though its
    # gradient is zero to rounding.
    for leaf, dense in zip(
        jax.tree.leaves(grads, is_leaf=is_rows), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(dense).max() + 1e-3
        np.testing.assert_allclose(osgd_jax.densify(leaf), dense, rtol=0, atol=2e-3 * scale)
        assert leaf.tasks == tuple(i for i in range(3) if np.any(dense[i] != 0))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_pullbacks_wait_for_each_other(platform):
    traced = jax.jit(osgd_jax.task_grads(branched)).trace(parameters())
    lowered = traced.lower(lowering_platforms=(platform,))
    # Two further losses; where the compiler drops barriers, a comparison stands for each.
    barriers = lowered.as_text().count("stablehlo.optimization_barrier")
    assert barriers == (2 if platform == "tpu" else 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_gradient_that_is_not_finite_stays_with_its_loss(bad):
    def losses(x):
        return jnp.sum(x**2), bad * jnp.sum(x), jnp.sum(3 * x)

    rows = jax.jit(osgd_jax.task_grads(losses))(jnp.ones(4)).rows
    np.testing.assert_array_equal(rows[0], np.full(4, 2.0))
    np.testing.assert_array_equal(rows[1], np.full(4, bad))
    np.testing.assert_array_equal(rows[2], np.full(4, 3.0))
