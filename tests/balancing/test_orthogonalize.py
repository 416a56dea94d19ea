"""Values of `orthogonalize` and its properties, against the formula in float64 NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from tests.helpers import reference

EPSILON = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5, "float64": 1e-10}


# ---------------------------------------------------------------------------------------------
# Values: trees, scopes, orders, dense and ragged
# ---------------------------------------------------------------------------------------------


def example(num_tasks: int, seed: int, dtypes=("float64",)):
    """A tree of parameters with random task gradients: params, dense, ragged, list, reach."""
    rng = np.random.default_rng(seed)
    shapes = {
        "stem": (4, 3),
        "nothing": None,
        "middle": [({"kernel": (2, 3, 2)}, ())],
        "head": (9,),
        "unused": (2,),
    }
    params = jax.tree.map(np.zeros, shapes, is_leaf=_is_shape)
    treedef = jax.tree.structure(params)
    every = set(range(num_tasks))
    some = set(rng.permutation(num_tasks)[: max(1, num_tasks - 1)].tolist())
    # In the order of jax.tree.leaves: head, middle (two), stem, unused.
    reach = [{int(rng.integers(num_tasks))}, some, some, every, set()]
    grads = []
    for i, (leaf, tasks) in enumerate(zip(jax.tree.leaves(params), reach, strict=True)):
        rows = rng.normal(size=(num_tasks, *leaf.shape))
        rows[[task for task in range(num_tasks) if task not in tasks]] = 0
        grads.append(jnp.asarray(rows, dtypes[i % len(dtypes)]))
    reach_tree = treedef.unflatten([tuple(sorted(tasks)) for tasks in reach])
    dense = treedef.unflatten(grads)
    params = jax.tree.map(lambda grad: jnp.zeros(grad.shape[1:], grad.dtype), dense)
    return params, dense, osgd_jax.to_task_rows(dense, reach_tree), grads, reach


def _is_shape(node) -> bool:
    return isinstance(node, tuple) and all(isinstance(size, int) for size in node)


def by_rank(params):
    return jax.tree.map(lambda param: f"rank {param.ndim}", params)


def in_two_halves(params):
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten([i % 2 for i in range(len(leaves))])


SCOPES = {"shared": "shared", "all": "all", "leaf": "leaf", "reach": "reach", "tree": None}
SCOPES["callable"] = by_rank


def make_scope(name: str, params):
    """The argument `scope=` and what it is for the reference."""
    if name == "tree":
        return in_two_halves(params), jax.tree.leaves(in_two_halves(params))
    if name == "callable":
        return by_rank, jax.tree.leaves(by_rank(params))
    return name, name


def permutation_of(order, num_tasks: int) -> list[int]:
    if isinstance(order, str):
        return list(range(num_tasks))[:: {"first_to_last": 1, "last_to_first": -1}[order]]
    return list(order)


def assert_update(tx, grads, params, expected, tolerance):
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    largest = max(np.abs(array).max(initial=0) for array in expected)
    for update, param, array in zip(
        jax.tree.leaves(updates), jax.tree.leaves(params), expected, strict=True
    ):
        assert update.dtype == param.dtype
        np.testing.assert_allclose(
            np.asarray(update, float), array, rtol=0, atol=tolerance * largest
        )


ORDERS = ["first_to_last", "last_to_first", "permutation"]
CASES = [
    (scope, order, 3 + i % 2) for i, (scope, order) in enumerate(itertools.product(SCOPES, ORDERS))
]


@pytest.mark.parametrize(("scope", "order", "num_tasks"), CASES)
def test_equals_the_formula(scope, order, num_tasks, x64):
    params, dense, ragged, grads, reach = example(num_tasks, seed=num_tasks)
    if order == "permutation":
        order = np.roll(np.arange(num_tasks), 1)  # with three or more, not its own inverse
    scope, groups = make_scope(scope, params)
    expected = reference.orthogonalize(grads, reach, permutation_of(order, num_tasks), groups)
    tx = osgd_jax.orthogonalize(order, scope)
    assert_update(tx, ragged, params, expected, 1e-10)
    if not isinstance(order, str):  # groups of dense gradients know nothing of the order
        assert_update(tx, dense, params, expected, 1e-10)


HELD = [(scope, (2,) if i % 2 else (1, 0)) for i, scope in enumerate(SCOPES)]


@pytest.mark.parametrize(("scope", "hold"), HELD)
def test_held_tasks_keep_their_place_and_are_not_stepped_along(scope, hold, x64):
    params, dense, ragged, grads, reach = example(3, seed=3)
    scope, groups = make_scope(scope, params)
    expected = reference.orthogonalize(grads, reach, (2, 0, 1), groups, hold=hold)
    tx = osgd_jax.orthogonalize((2, 0, 1), scope, hold=hold)
    for form in (ragged, dense):
        assert_update(tx, form, params, expected, 1e-10)


@pytest.mark.parametrize("scope", ["all", "shared", "leaf", "reach"])
def test_a_step_of_the_others_is_orthogonal_to_held_rows_that_come_first(scope, x64):
    params, dense, ragged, _, reach = example(4, seed=7)
    updates = {}
    for hold in ((), (1,), (3, 1), range(4)):
        tx = osgd_jax.osgd(-1.0, order=(1, 3, 0, 2), scope=scope, hold=hold)
        updates[tuple(hold)], _ = jax.jit(tx.update)(ragged, tx.init(params), params)
    for hold in ((1,), (3, 1)):
        # Over each group, and so over all: parameters of one task have no part, or are its own.
        for rows, reached, update in zip(
            jax.tree.leaves(dense), reach, jax.tree.leaves(updates[hold]), strict=True
        ):
            if scope == "leaf":
                products = np.tensordot(np.asarray(rows), np.asarray(update), update.ndim)
                np.testing.assert_allclose(products[list(hold)], 0, atol=1e-10)
            if reached <= set(hold) and scope != "all":
                np.testing.assert_array_equal(update, 0)
        products = sum(
            np.tensordot(np.asarray(rows), np.asarray(update), update.ndim)
            for rows, update in zip(
                jax.tree.leaves(dense), jax.tree.leaves(updates[hold]), strict=True
            )
        )
        np.testing.assert_allclose(products[list(hold)], 0, atol=1e-10)
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(updates[0, 1, 2, 3]))
    assert any(np.any(leaf != 0) for leaf in jax.tree.leaves(updates[()]))


def test_held_tasks_in_a_random_order(x64):
    rows = np.random.default_rng(3).normal(size=(3, 7))
    directions = [
        reference.gram_schmidt(rows, order)[[0, 2]].sum(axis=0)
        for order in itertools.permutations(range(3))
    ]
    tx = osgd_jax.orthogonalize("random", key=0, hold=np.array([1]))
    update, state = jax.jit(tx.update), tx.init(None)
    for _ in range(4):
        found, state = update(jnp.asarray(rows), state)
        assert sum(np.allclose(found, direction) for direction in directions) == 1


@pytest.mark.parametrize("make", [osgd_jax.orthogonalize, functools.partial(osgd_jax.osgd, -1.0)])
def test_an_order_of_names_is_that_of_the_losses(make, x64):
    # Tasks are numbered by sorted keys: bc, ic, pde; this permutation is not its own inverse.
    losses = {"pde": 1.0, "ic": 2.0, "bc": 3.0}
    params, dense, _, grads, reach = example(3, seed=3)
    expected = reference.orthogonalize(grads, reach, (1, 2, 0), "all")
    tx = make(order=("ic", "pde", "bc"), scope="all")
    with_losses = optax.GradientTransformationExtraArgs(
        tx.init, functools.partial(tx.update, losses=losses)
    )
    assert_update(with_losses, dense, params, expected, 1e-10)


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 6])
def test_equals_the_formula_for_other_numbers_of_tasks(num_tasks, x64):
    params, dense, ragged, grads, reach = example(num_tasks, seed=num_tasks)
    expected = reference.orthogonalize(grads, reach, range(num_tasks))
    for form in (dense, ragged):
        assert_update(osgd_jax.orthogonalize(), form, params, expected, 1e-10)


def test_many_tasks_take_the_loop(x64):
    num_tasks = 20
    rows = np.random.default_rng(0).normal(size=(num_tasks, 60))
    expected = reference.gram_schmidt(rows, range(num_tasks)).sum(axis=0)
    params = {"w": jnp.zeros(60)}
    assert_update(osgd_jax.orthogonalize(), {"w": jnp.asarray(rows)}, params, [expected], 1e-10)


@pytest.mark.parametrize(
    ("dtypes", "scope"),
    [
        (("float32",), "shared"),
        (("float16",), "all"),
        (("bfloat16",), "shared"),
        (("bfloat16", "float32", "float16"), "all"),
    ],
    ids=str,
)
def test_dtypes(dtypes, scope):
    params, _, ragged, grads, reach = example(3, seed=5, dtypes=dtypes)
    expected = reference.orthogonalize(grads, reach, range(3), scope)
    tolerance = max(EPSILON[dtype] for dtype in dtypes)
    assert_update(osgd_jax.orthogonalize(scope=scope), ragged, params, expected, tolerance)


def test_mixed_with_float64_is_computed_in_float64(x64):
    _, dense, _, grads, reach = example(3, seed=5, dtypes=("float64", "float32"))
    expected = reference.orthogonalize(grads, reach, range(3), "all")
    updates = orthogonalized(dense)
    for update, array in zip(jax.tree.leaves(updates), expected, strict=True):
        np.testing.assert_allclose(
            update, array, rtol=0, atol=1e-10 if update.dtype == jnp.float64 else 1e-5
        )


def test_half_precision_does_not_overflow_in_the_gramian():
    # Squares of 300 are above the largest float16, 65504.
    grads = {"w": jnp.asarray([[300, 300, 0], [300, 0, 300]], jnp.float16)}
    updates = orthogonalized(grads)
    np.testing.assert_allclose(np.asarray(updates["w"], float), [450, 150, 300], rtol=2e-3)


def orthogonalized(grads, order="first_to_last", scope="all"):
    tx = osgd_jax.orthogonalize(order, scope)
    return tx.update(grads, tx.init(None))[0]


def test_random_order_draws_a_new_permutation_each_step(x64):
    rows = np.random.default_rng(3).normal(size=(3, 7))
    params, dense = {"w": jnp.zeros(7)}, {"w": jnp.asarray(rows)}
    ragged = osgd_jax.to_task_rows(dense, {"w": (0, 1, 2)})
    directions = {
        order: reference.gram_schmidt(rows, order).sum(axis=0)
        for order in itertools.permutations(range(3))
    }

    def drawn(form, key, steps=12):
        tx = osgd_jax.orthogonalize("random", key=key)
        update, state = jax.jit(tx.update), tx.init(params)
        orders = []
        for _ in range(steps):
            updates, state = update(form, state, params)
            (order,) = [o for o, array in directions.items() if np.allclose(updates["w"], array)]
            orders.append(order)
        return orders

    orders = drawn(ragged, 0)
    assert len(set(orders)) >= 4
    assert drawn(ragged, jax.random.key(0)) == orders == drawn(dense, jnp.asarray(0))
    assert drawn(ragged, 1) != orders


def test_random_order_is_the_same_for_all_groups_of_a_step(x64):
    # Two equal groups: had each its own order, the two updates would differ at some step.
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)))
    params = {"a": jnp.zeros(6), "b": jnp.zeros(6)}
    tx = osgd_jax.orthogonalize("random", "leaf", key=0)
    update, state = jax.jit(tx.update), tx.init(params)
    for _ in range(8):
        updates, state = update({"a": rows, "b": rows}, state, params)
        np.testing.assert_array_equal(updates["a"], updates["b"])


def test_the_default_scope_is_all_everywhere():
    rng = np.random.default_rng(0)
    grads = {name: jnp.asarray(rng.normal(size=(2, 4)), jnp.float32) for name in ("stem", "head")}
    grads["head"] = grads["head"].at[1].set(0)
    params = {"stem": jnp.zeros(4), "head": jnp.zeros(4)}

    def update(tx):
        return tx.update(grads, tx.init(params), params, losses=jnp.ones(2))[0]["head"]

    weighting = osgd_jax.weightings.orthogonal()
    everywhere = update(osgd_jax.orthogonalize(scope="all"))
    np.testing.assert_array_equal(update(osgd_jax.orthogonalize()), everywhere)
    np.testing.assert_array_equal(update(osgd_jax.osgd(1.0)), -everywhere)
    np.testing.assert_array_equal(update(osgd_jax.aggregate(weighting)), everywhere)
    assert not np.allclose(everywhere, grads["head"][0])
    for method in (osgd_jax.moco, osgd_jax.db_mtl, osgd_jax.excess_mtl):
        np.testing.assert_array_equal(update(method(2)), update(method(2, scope="all")))
        assert not np.allclose(update(method(2)), update(method(2, scope="shared")))


def test_private_parameters_keep_their_gradient_with_scope_shared():
    rows = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    head = np.asarray([[1, 2], [0, 0]], np.float32)
    updates = orthogonalized({"stem": jnp.asarray(rows), "head": jnp.asarray(head)}, scope="shared")
    np.testing.assert_array_equal(updates["head"], head[0])
    updates = orthogonalized({"stem": jnp.asarray(rows), "head": jnp.asarray(head)}, scope="all")
    assert not np.allclose(updates["head"], head[0])


@pytest.mark.parametrize("scope", ["shared", "all", "leaf", "reach"])
def test_nothing_shared_and_nothing_reached(scope):
    rows = jnp.asarray([[[1.0, 2.0]], [[3.0, 4.0]]])
    grads = {
        "head": [osgd_jax.TaskRows(rows[i], (i,), 2) for i in range(2)],
        "unused": osgd_jax.TaskRows(jnp.zeros((0, 3)), (), 2),
        "no size": osgd_jax.TaskRows(jnp.zeros((2, 0, 3)), (0, 1), 2),
    }
    for form in (grads, osgd_jax.densify(grads)):
        updates = orthogonalized(form, scope=scope)
        np.testing.assert_allclose(updates["head"][0], [1, 2])
        np.testing.assert_array_equal(updates["unused"], np.zeros(3))
        assert updates["no size"].shape == (0, 3)
        if scope != "all":
            np.testing.assert_allclose(updates["head"][1], [3, 4])


@pytest.mark.parametrize("scope", ["shared", "all", "leaf", "reach", {}, lambda params: params])
def test_empty_tree(scope):
    tx = osgd_jax.osgd(0.1, momentum=0.9, scope=scope)
    updates, _ = tx.update({}, tx.init({}), {})
    assert updates == {}


@pytest.mark.parametrize("scope", ["shared", "reach"])
def test_a_row_of_zeros_reaches_nothing(scope):
    # With the second loss masked out, a stem that both losses reach is private.
    rows = jnp.asarray([[1.0, 2.0], [0.0, 0.0]])
    tx = osgd_jax.aggregate(osgd_jax.weightings.mean(), scope)
    for grads in (rows, osgd_jax.TaskRows(rows, (0, 1), 2), osgd_jax.TaskRows(rows[:1], (0,), 2)):
        update, _ = jax.jit(tx.update)(grads, tx.init(None))
        np.testing.assert_array_equal(update, rows[0] / (1 if scope == "shared" else 2))


# ---------------------------------------------------------------------------------------------
# Integration
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scope", "nesterov"), [("shared", True), ("all", False)])
def test_osgd_is_the_chain_and_the_formula_over_steps(scope, nesterov, x64):
    rng = np.random.default_rng(0)
    arrays = {
        "stem": rng.normal(size=(3, 4)),
        "middle": rng.normal(size=(4, 4)),
        "heads": [rng.normal(size=4), rng.normal(size=4)],
    }
    params = jax.tree.map(jnp.asarray, arrays)
    inputs, target = jnp.asarray(rng.normal(size=(6, 3))), jnp.asarray(rng.normal(size=6))
    reach = [{0}, {1}, {1}, {0, 1}]  # heads, middle, stem: as jax.tree.leaves has them

    def losses(params):
        hidden = jnp.tanh(inputs @ params["stem"])
        deeper = jnp.tanh(hidden @ params["middle"])
        outputs = hidden @ params["heads"][0], deeper @ params["heads"][1]
        return tuple(jnp.mean((output - target) ** 2) for output in outputs)

    ours = osgd_jax.osgd(0.1, momentum=0.9, nesterov=nesterov, scope=scope)
    chain = optax.chain(
        osgd_jax.orthogonalize(scope=scope), optax.sgd(0.1, momentum=0.9, nesterov=nesterov)
    )
    ours_params, ours_state = params, ours.init(params)
    chain_params, chain_state = params, chain.init(params)
    expected = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    momentum = [np.zeros_like(leaf) for leaf in expected]
    treedef = jax.tree.structure(params)

    @jax.jit
    def ours_step(params, state):
        updates, state = ours.update(osgd_jax.task_grads(losses)(params), state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def chain_step(params, state):
        grads = jax.jacrev(lambda params: jnp.stack(losses(params)))(params)
        updates, state = chain.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    @jax.jit
    def separate_grads(params):
        return [jax.grad(lambda p, k=k: losses(p)[k])(params) for k in range(2)]

    for _ in range(4):
        ours_params, ours_state = ours_step(ours_params, ours_state)
        chain_params, chain_state = chain_step(chain_params, chain_state)
        rows = [jax.tree.leaves(row) for row in separate_grads(treedef.unflatten(expected))]
        grads = [np.stack([np.asarray(row) for row in leaf]) for leaf in zip(*rows, strict=True)]
        step = reference.orthogonalize(grads, reach, range(2), scope)
        momentum = [0.9 * m + u for m, u in zip(momentum, step, strict=True)]
        ahead = [0.9 * m + u for m, u in zip(momentum, step, strict=True)]
        step = ahead if nesterov else momentum
        expected = [p - 0.1 * u for p, u in zip(expected, step, strict=True)]
    for a, b, c in zip(
        jax.tree.leaves(ours_params), jax.tree.leaves(chain_params), expected, strict=True
    ):
        np.testing.assert_allclose(a, c, rtol=0, atol=1e-11)
        np.testing.assert_allclose(b, c, rtol=0, atol=1e-11)
