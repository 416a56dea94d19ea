"""Task gradients: values against `jax.jacrev`, reach against non-zero rows, and the work done."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import TaskRows, nets

# ---------------------------------------------------------------------------------------------
# Nets: K = 3 outputs; each takes the parameters and returns its outputs
# ---------------------------------------------------------------------------------------------


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
    found = [leaf.tasks for leaf in jax.tree.leaves(grads, is_leaf=_is_rows)]
    assert found == jax.tree.leaves(reach, is_leaf=_is_reach)
    nonzero_reach = jax.tree.leaves(nonzero_rows(expected), is_leaf=_is_reach)
    for named, nonzero in zip(found, nonzero_reach, strict=True):
        assert named == nonzero if exact else set(named) >= set(nonzero)


def _is_rows(node):
    return isinstance(node, TaskRows)


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
        jax.tree.leaves(grads, is_leaf=_is_rows), jax.tree.leaves(expected), strict=True
    ):
        scale = np.abs(dense).max() + 1e-3
        np.testing.assert_allclose(osgd_jax.densify(leaf), dense, rtol=0, atol=2e-3 * scale)
        assert leaf.tasks == tuple(i for i in range(3) if np.any(dense[i] != 0))


# ---------------------------------------------------------------------------------------------
# The interface: arguments, trees, dtypes
# ---------------------------------------------------------------------------------------------


def two(x, y, scale=1.0):
    return (scale * jnp.sum(x**2), scale * jnp.sum(x) * jnp.sum(y**3))


def test_argnums_has_aux_and_keywords():
    x, y = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0])
    for argnums in (0, 1, -1, (0,), (0, 1), [1, 0]):
        grads = osgd_jax.task_grads(two, argnums=argnums)(x, y, scale=2.0)
        numbers = argnums if isinstance(argnums, int) else tuple(argnums)
        want = jax.jacrev(lambda x, y: jnp.stack(two(x, y, 2.0)), argnums=numbers)(x, y)
        assert_trees_close(osgd_jax.densify(grads), want, rtol=1e-6)

    def with_aux(x, y):
        return two(x, y), {"aux": x + 1, "text": None}

    (losses, aux), grads = osgd_jax.value_and_task_grads(with_aux, has_aux=True)(x, y)
    assert isinstance(losses, tuple)
    np.testing.assert_allclose(aux["aux"], x + 1)
    again, aux = osgd_jax.task_grads(with_aux, has_aux=True)(x, y)
    assert_trees_close(again, grads)
    assert osgd_jax.reach(with_aux, has_aux=True, argnums=1)(x, y) == (1,)
    assert_trees_close(osgd_jax.densify(grads), jacobian(two)(x, y))


def test_losses_come_back_as_they_were_returned():
    x, y = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0])
    for form in (tuple, list, jnp.stack):
        losses, _ = osgd_jax.value_and_task_grads(lambda x, y, form=form: form(two(x, y)))(x, y)
        assert isinstance(losses, type(form(two(x, y))))


def test_one_loss():
    assert osgd_jax.task_grads(lambda x: (x**2,))(3.0).tasks == (0,)
    np.testing.assert_allclose(osgd_jax.task_grads(lambda x: [x**2])(3.0).rows, [6])
    np.testing.assert_allclose(osgd_jax.task_grads(lambda x: (x**2)[None])(3.0).rows, [6])


def test_trees_with_none_scalars_and_no_size():
    params = {"a": (jnp.ones(2), None), "b": 2.0, "c": np.zeros((0, 3), np.float32), "d": []}
    grads = osgd_jax.task_grads(lambda p: (p["a"][0].sum() * p["b"], p["b"] + p["c"].sum()))(params)
    assert jax.tree.structure(grads, is_leaf=_is_rows) == jax.tree.structure(params)
    assert grads["a"][0].rows.shape == (1, 2)
    assert grads["b"].rows.shape == (2,)
    assert grads["c"].rows.shape == (1, 0, 3)
    assert grads["a"][1] is None


def test_empty_tree_of_parameters():
    losses, grads = osgd_jax.value_and_task_grads(lambda p, x: (x, 2 * x))({}, 1.0)
    assert losses == (1.0, 2.0)
    assert grads == {}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_dtypes(dtype, x64):
    params = {"a": jnp.ones(3, dtype), "b": jnp.ones(3, jnp.float32)}
    grads = osgd_jax.task_grads(lambda p: (jnp.sum(p["a"] ** 2), jnp.sum(p["a"] * p["b"])))(params)
    assert grads["a"].rows.dtype == dtype
    assert grads["b"].rows.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(grads["a"].rows, float), [[2] * 3, [1] * 3])


def test_nnx_module_and_state_as_parameters():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.stem = nnx.Linear(3, 4, rngs=rngs)
            self.heads = nnx.List([nnx.Linear(4, 1, rngs=rngs) for _ in range(2)])

        def __call__(self, x):
            hidden = nnx.tanh(self.stem(x))
            return [head(hidden) for head in self.heads]

    net = Net(nnx.Rngs(0))
    graphdef, state = nnx.split(net)

    def losses(state):
        return tuple(jnp.mean(output**2) for output in nnx.merge(graphdef, state)(INPUTS))

    grads = osgd_jax.task_grads(losses)(state)
    assert isinstance(grads, nnx.State)
    assert_trees_close(osgd_jax.densify(grads), jacobian(losses)(state), rtol=1e-5)
    assert osgd_jax.reach(losses)(state)["heads"][1]["kernel"].get_value() == (1,)
    # The module is a pytree, too.
    of_module = osgd_jax.task_grads(lambda net: tuple(jnp.mean(o**2) for o in net(INPUTS)))(net)
    assert_trees_close(jax.tree.leaves(of_module), jax.tree.leaves(grads), rtol=1e-6)


# ---------------------------------------------------------------------------------------------
# Under transformations
# ---------------------------------------------------------------------------------------------


def branched(params, inputs=INPUTS):
    return tuple(exits(params, plain, inputs))


def test_under_vmap():
    batches = jnp.stack([INPUTS, 2 * INPUTS])
    grads = jax.vmap(osgd_jax.task_grads(branched), (None, 0))(parameters(), batches)
    for i in range(2):
        expected = osgd_jax.task_grads(branched)(parameters(), batches[i])
        assert_trees_close(jax.tree.map(lambda g, i=i: g[i], grads), expected, rtol=1e-5, atol=1e-6)


def test_under_scan_with_donation():
    tx = osgd_jax.osgd(0.1, momentum=0.9)

    def step(carry, inputs):
        params, state = carry
        losses, grads = osgd_jax.value_and_task_grads(branched)(params, inputs)
        updates, state = tx.update(grads, state, params)
        return (jax.tree.map(jnp.add, params, updates), state), jnp.stack(losses)

    params = parameters()
    batches = jnp.stack([INPUTS, 2 * INPUTS, 0.5 * INPUTS])
    carry, expected = (params, tx.init(params)), []
    for batch in batches:
        carry, losses = step(carry, batch)
        expected.append(losses)
    train = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches), donate_argnums=0)
    donated = jax.tree.map(jnp.copy, (params, tx.init(params)))
    result, losses = train(donated, batches)
    np.testing.assert_allclose(losses, jnp.stack(expected), rtol=1e-4)
    assert_trees_close(result, carry, rtol=1e-4, atol=1e-5)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(donated))


def test_can_be_differentiated_again():
    def total(params):
        return sum(
            jnp.sum(leaf**2) for leaf in jax.tree.leaves(osgd_jax.task_grads(branched)(params))
        )

    def expected(params):
        dense = jacobian(branched)(params)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(dense))

    assert_trees_close(
        jax.jit(jax.grad(total))(parameters()),
        jax.jit(jax.grad(expected))(parameters()),
        rtol=1e-4,
        atol=1e-4,
    )


# ---------------------------------------------------------------------------------------------
# The work: what is not reached is not computed
# ---------------------------------------------------------------------------------------------


def count(jaxpr, name: str) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == name
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += count(inner, name)
    return total


@pytest.mark.parametrize("form", [tuple, jnp.stack], ids=["tuple", "stack"])
def test_matrix_products_of_a_net_with_three_exits(form):
    def losses(params):
        return form(exits(params, plain))

    traced = jax.jit(osgd_jax.task_grads(losses)).trace(parameters())
    # Forward 3 layers and 3 heads. Loss k has k + 1 layers: backward a product for each kernel,
    # one for each input but the first, and two for its head.
    forward, backward = 6, (1 + 2) + (3 + 2) + (5 + 2)
    assert count(traced.jaxpr.jaxpr, "dot_general") == forward + backward


def test_flops_of_disjoint_losses_are_those_of_their_sum():
    # Two towers that share nothing: K gradients cost no more than one.
    params = {"a": jnp.ones((64, 64)), "b": jnp.ones((64, 64))}
    inputs = jnp.ones((32, 64))

    def losses(params):
        return tuple(jnp.sum(jnp.tanh(inputs @ params[name]) ** 2) for name in "ab")

    def flops(fun):
        return jax.jit(fun).lower(params).compile().cost_analysis()["flops"]

    ours = flops(osgd_jax.task_grads(losses))
    assert ours <= 1.01 * flops(jax.grad(lambda params: sum(losses(params))))
    assert ours < 0.7 * flops(jacobian(losses))


def test_reach_computes_nothing():
    shapes = jax.eval_shape(parameters)
    assert osgd_jax.reach(branched)(shapes) == EXITS


# ---------------------------------------------------------------------------------------------
# TaskRows
# ---------------------------------------------------------------------------------------------


def test_round_trips():
    params = parameters()
    grads = osgd_jax.task_grads(branched)(params)
    dense = osgd_jax.densify(grads)
    reach = osgd_jax.reach(branched)(params)
    assert jax.tree.map(jnp.shape, dense)["middle"] == (3, 4, 4)
    again = osgd_jax.to_task_rows(dense, reach)
    assert jax.tree.structure(again) == jax.tree.structure(grads)
    assert_trees_close(again, grads, rtol=0)
    assert_trees_close(osgd_jax.densify(again), dense, rtol=0)
    assert_trees_close(osgd_jax.densify(dense), dense, rtol=0)
    np.testing.assert_array_equal(dense["middle"][0], np.zeros((4, 4)))
    assert dense["unused"].shape == (3, 2)
    assert_trees_close(osgd_jax.reach(branched)(params), nonzero_rows(dense))


def test_params_are_a_prefix_of_the_task_gradients():
    params = parameters()
    grads = osgd_jax.task_grads(branched)(params)
    fits = jax.tree.map(
        lambda p, g: p.shape == g.rows.shape[1:] and g.num_tasks == 3, params, grads
    )
    assert all(jax.tree.leaves(fits))


def test_task_rows_are_a_pytree_node():
    rows = TaskRows(jnp.ones((2, 3)), (0, 2), 4)
    doubled = jax.tree.map(lambda leaf: 2 * leaf, rows)
    assert doubled.tasks == (0, 2)
    assert doubled.num_tasks == 4
    np.testing.assert_array_equal(jax.jit(lambda r: r)(doubled).rows, 2 * np.ones((2, 3)))
