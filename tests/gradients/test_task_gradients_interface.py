"""Task gradients: what goes in and comes out, under transformations, and the work done."""

import copy
import pickle
from collections import OrderedDict, defaultdict
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import osgd_jax
from osgd_jax import TaskRows
from tests.helpers.three_exits import (
    EXITS,
    INPUTS,
    assert_trees_close,
    branched,
    exits,
    is_rows,
    jacobian,
    nonzero_rows,
    parameters,
    plain,
)

# ---------------------------------------------------------------------------------------------
# The interface: arguments, trees, dtypes
# ---------------------------------------------------------------------------------------------


def two(x, y, scale=1.0):
    return (scale * jnp.sum(x**2), scale * jnp.sum(x) * jnp.sum(y**3))


def test_argnums_has_aux_and_keywords():
    x, y = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0])
    for argnums in (0, 1, -1, np.int64(0), (0,), (0, 1), [1, 0], (-1, 0)):
        grads = osgd_jax.task_grads(two, argnums=argnums)(x, y, scale=2.0)
        numbers = tuple(argnums) if isinstance(argnums, tuple | list) else int(argnums)
        want = jax.jacrev(lambda x, y: jnp.stack(two(x, y, 2.0)), argnums=numbers)(x, y)
        assert_trees_close(osgd_jax.densify(grads), want, rtol=1e-6)

    # An iterator serves for every call.
    grads = osgd_jax.task_grads(two, argnums=map(int, "01"))
    assert_trees_close(grads(x, y), grads(x, y))
    assert_trees_close(grads(x, y), osgd_jax.task_grads(two, argnums=(0, 1))(x, y))
    reach = osgd_jax.reach(two, argnums=map(int, "01"))
    assert reach(x, y) == reach(x, y) == ((0, 1), (1,))

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


class Losses(NamedTuple):
    ic: jax.Array
    bc: jax.Array
    pde: jax.Array


TREES = {
    "dict": (
        lambda a, b, c: {"pde": a, "bc": b, "ic": c},
        ("bc", "ic", "pde"),
        (1, 2, 0),
    ),
    "named tuple": (lambda a, b, c: Losses(ic=c, bc=a, pde=b), ("ic", "bc", "pde"), (2, 0, 1)),
    "nested": (
        lambda a, b, c: {"wall": {"top": a, "left": b}, "inside": [c]},
        ("inside/0", "wall/left", "wall/top"),
        (2, 1, 0),
    ),
    "tuple": (lambda a, b, c: (a, b, c), ("0", "1", "2"), ()),
    "array": (lambda a, b, c: jnp.stack([a, b, c]), ("0", "1", "2"), ()),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_of_losses(name):
    tree, names, order = TREES[name]
    order = order or (0, 1, 2)

    def losses(params):
        return tree(*branched(params))

    params = parameters()
    values, grads = jax.jit(osgd_jax.value_and_task_grads(losses))(params)
    assert jax.tree.structure(values) == jax.tree.structure(losses(params))
    assert_trees_close(values, losses(params), rtol=1e-6)
    assert osgd_jax.task_names(values) == osgd_jax.task_names(losses(params)) == names
    # The gradients are those of a tuple in the order of the names, the reach is, too.
    in_order = lambda params: tuple(branched(params)[task] for task in order)  # noqa: E731
    expected = osgd_jax.task_grads(in_order)(params)
    for leaf, other in zip(rows_of(grads), rows_of(expected), strict=True):
        assert leaf.tasks == other.tasks
        np.testing.assert_allclose(leaf.rows, other.rows, rtol=1e-5, atol=1e-6)
    reach, expected = osgd_jax.reach(losses)(params), osgd_jax.reach(in_order)(params)
    assert reach == expected

    def with_aux(params):
        return losses(params), "aux"

    assert osgd_jax.reach(with_aux, has_aux=True)(params) == expected


def rows_of(grads):
    return jax.tree.leaves(grads, is_leaf=is_rows)


def test_names_of_one_number_or_a_matrix():
    for losses in (jnp.ones(()), jnp.ones((2, 2))):
        with pytest.raises(ValueError, match=r"losses has shape .*array \[K\]"):
            osgd_jax.task_names(losses)


@pytest.mark.parametrize("off", [0.0, np.float32(0), jnp.zeros((), jnp.bfloat16)])
def test_a_number_is_a_loss_that_no_parameter_reaches(off):
    losses, grads = osgd_jax.value_and_task_grads(lambda p: {"off": off, "on": p**2})(3.0)
    assert jnp.issubdtype(losses["off"].dtype, jnp.floating)
    assert float(losses["off"]) == 0
    assert grads.tasks == (1,)
    assert grads.num_tasks == 2


def test_one_loss():
    assert osgd_jax.task_grads(lambda x: (x**2,))(3.0).tasks == (0,)
    np.testing.assert_allclose(osgd_jax.task_grads(lambda x: [x**2])(3.0).rows, [6])
    np.testing.assert_allclose(osgd_jax.task_grads(lambda x: (x**2)[None])(3.0).rows, [6])


def test_trees_with_none_scalars_and_no_size():
    params = {"a": (jnp.ones(2), None), "b": 2.0, "c": np.zeros((0, 3), np.float32), "d": []}
    grads = osgd_jax.task_grads(lambda p: (p["a"][0].sum() * p["b"], p["b"] + p["c"].sum()))(params)
    assert jax.tree.structure(grads, is_leaf=is_rows) == jax.tree.structure(params)
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


def test_nnx_state_as_parameters():
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
    # A state from outside may stand in a compiled function; one of a module's alone may not.
    closed_over = jax.jit(lambda: osgd_jax.task_grads(losses)(state))()
    assert_trees_close(closed_over, grads, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------------------------
# Under transformations
# ---------------------------------------------------------------------------------------------


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
    assert count(traced.jaxpr, "dot_general") == forward + backward


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


def test_reach_takes_what_task_grads_takes():
    def losses(params, x, train=False, mode="both"):
        late = params["b"] if train and mode == "both" else params["a"]
        return (jnp.sum(params["a"] * x), jnp.sum(late)), {"mode": mode}

    params, x = {"a": jnp.ones(2), "b": jnp.ones(2)}, jax.ShapeDtypeStruct((2,), jnp.float32)
    reach = osgd_jax.reach(losses, has_aux=True)
    assert reach(params, x, True) == {"a": (0,), "b": (1,)}
    assert reach(params, x, train=True, mode="one") == {"a": (0, 1), "b": ()}
    assert reach(params, 2.0) == {"a": (0, 1), "b": ()}


# ---------------------------------------------------------------------------------------------
# TaskRows
# ---------------------------------------------------------------------------------------------


ORDERED = {
    "tuple": (lambda a, b: (a, b), None, True),
    "list": (lambda a, b: [a, b], None, True),
    "array": (lambda a, b: jnp.stack([a, b]), None, True),
    "named tuple": (Losses._make, ("ic", "bc", "pde"), True),
    "one key": (lambda a, b: {"wall": (a, b)}, ("wall/0", "wall/1"), True),
    "ordered dict": (lambda a, b: OrderedDict(recon=a, kl=b), ("recon", "kl"), True),
    "dict": (lambda a, b: {"recon": a, "kl": b}, ("kl", "recon"), False),
    "numbers for keys": (lambda a, b: {0: a, 1: b}, ("0", "1"), False),
    "default dict": (lambda a, b: defaultdict(list, recon=a, kl=b), ("kl", "recon"), False),
    "dict in a list": (lambda a, b: [{"b": a, "a": b}, a, b], ("0/a", "0/b", "1", "2"), False),
    "dict around tuples": (lambda a, b: {"b": (a,), "a": (b,)}, ("a/0", "b/0"), False),
    "one key beside nothing": (
        lambda a, b: {"wall": [a, b], "off": {}},
        ("wall/0", "wall/1"),
        True,
    ),
}


@pytest.mark.parametrize("name", ORDERED)
def test_rows_know_the_names_and_whether_their_order_was_written(name):
    tree, names, ordered = ORDERED[name]
    losses = tree if name != "named tuple" else lambda a, b: Losses(a, b, a)

    @jax.jit
    def grads_fn(p):
        return osgd_jax.task_grads(lambda p: losses(jnp.sum(p**2), jnp.sum(p)))(p)

    grads = grads_fn(jnp.ones(3))
    assert (grads.names, grads.ordered) == (names, ordered)
    # What makes task gradients of task gradients keeps the names, as `jax.tree.map` does.
    kept = [
        osgd_jax.clip_task_norms(1.0).update(grads, optax.EmptyState())[0],
        osgd_jax.normalize_task_norms().update(grads, optax.EmptyState())[0],
        osgd_jax.to_task_rows(grads, (0,)),
        jax.vmap(grads_fn)(jnp.ones((2, 3))),
        jax.lax.scan(lambda sums, _: (jax.tree.map(jnp.add, sums, grads), None), grads, length=2)[
            0
        ],
        pickle.loads(pickle.dumps(grads)),
        copy.deepcopy(grads),
    ]
    assert [(leaf.names, leaf.ordered) for leaf in kept] == [(names, ordered)] * len(kept)


def test_names_are_part_of_what_a_compiled_program_is_for():
    # Were they not, the second call would run the program of the first.
    tx = osgd_jax.orthogonalize(("b", "a"))
    update = jax.jit(lambda grads: tx.update(grads, tx.init(None))[0])
    rows = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    for names, expected in ((("a", "b"), [1.5, 0.5]), (("b", "a"), [1.0, 1.0])):
        np.testing.assert_allclose(update(TaskRows(rows, (0, 1), 2, names, False)), expected)


def test_exported_gradients_keep_their_names():
    grads_fn = jax.jit(osgd_jax.task_grads(lambda p: {"b": p**2, "a": p}))
    exported = jax.export.export(grads_fn)(1.0)
    assert exported.call(1.0).names == ("a", "b")
    with_rows = jax.export.export(jax.jit(osgd_jax.gramian))(grads_fn(1.0))
    np.testing.assert_allclose(with_rows.call(grads_fn(1.0)), [[1, 2], [2, 4]])


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
