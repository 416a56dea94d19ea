"""GradDrop, MoCo, DB-MTL and ExcessMTL, against the formulas of the papers in float64 NumPy.

The references below are written from the papers' update rules for one long gradient of each task.
They share nothing with the library but the random numbers that GradDrop draws.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import optimize

import osgd_jax

K = 3
STEPS = 4
REACH = {"first": (0, 1, 2), "heads": [(0,), (1,), (2,)], "second": (1, 2)}
SHAPES = {"first": (2, 3), "heads": [(2,), (), (3,)], "second": (4,)}
PARAMS = jax.tree.map(jnp.ones, SHAPES, is_leaf=lambda node: isinstance(node, tuple))
LOSSES = np.random.default_rng(1).uniform(0.2, 3, (STEPS, K)).astype(np.float32)
STATEFUL = ("db_mtl", "excess_mtl", "moco")
NAMES = ("graddrop", *STATEFUL)

every_method = pytest.mark.parametrize("name", NAMES)
every_stateful_method = pytest.mark.parametrize("name", STATEFUL)
every_scope = pytest.mark.parametrize("scope", ["shared", "all"])


def dense_gradients(seed):
    """Gradients with rows of zeros where a loss does not reach."""
    rng = np.random.default_rng(seed)

    def rows(param, reach):
        mask = np.isin(np.arange(K), reach).reshape(-1, *[1] * param.ndim)
        return jnp.asarray(rng.normal(size=(K, *param.shape)) * mask, jnp.float32)

    treedef = jax.tree.structure(PARAMS)
    leaves = zip(treedef.flatten_up_to(PARAMS), treedef.flatten_up_to(REACH), strict=True)
    return treedef.unflatten([rows(param, reach) for param, reach in leaves])


DENSE = [dense_gradients(seed) for seed in range(STEPS)]
RAGGED = [osgd_jax.to_task_rows(grads, REACH) for grads in DENSE]


def make(name, scope="shared", num_tasks=K):
    if name == "graddrop":
        return osgd_jax.graddrop(0, leak=(0.0, 0.3, 1.0))
    if name == "moco":
        beta, gamma = (lambda steps: 0.5 / (steps + 1) ** 0.5), 0.2
        return osgd_jax.moco(num_tasks, beta, gamma, rho=0.1, scope=scope)
    if name == "db_mtl":
        return osgd_jax.db_mtl(num_tasks, 0.8, scope)
    return osgd_jax.excess_mtl(num_tasks, 0.5, scope)


@functools.cache
def made(name, scope="shared"):
    tx = make(name, scope)
    update = jax.jit(lambda g, state, losses: tx.update(g, state, PARAMS, losses=losses))
    return tx, update


def run(name, grads, scope="shared"):
    """Updates of each step, and the last state."""
    tx, update = made(name, scope)
    state, updates = tx.init(PARAMS), []
    for g, losses in zip(grads, LOSSES, strict=True):
        u, state = update(g, state, losses)
        updates.append(u)
    return updates, state


def assert_close(actual, expected, rtol=2e-5, atol=2e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), actual, expected
    )


def vectors(grads, names):
    """The gradients of the tasks over some parameters, one long row each, in float64."""
    leaves = [jax.tree.leaves(grads[name]) for name in names]
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(K, -1) for group in leaves for leaf in group], axis=1
    )


# The references: from the gradients `[steps, K, P]` of one group to the directions `[steps, P]`.


def reference_moco(gradients):
    y, weights = np.zeros_like(gradients[0]), np.full(K, 1 / K)
    for step, g in enumerate(gradients):
        beta = 0.5 / (step + 1) ** 0.5
        y = (1 - beta) * y + beta * g
        target = weights - 0.2 * (y @ (y.T @ weights) + 0.1 * weights)
        # The simplex's point nearest to the target: max(target - t, 0), with a sum of one.
        shift = optimize.brentq(
            lambda t, target=target: np.maximum(target - t, 0).sum() - 1,
            target.min() - 1,
            target.max(),
            xtol=1e-14,
        )
        weights = np.maximum(target - shift, 0)
        yield weights @ y


def reference_db_mtl(gradients):
    means = np.zeros_like(gradients[0])
    for g, losses in zip(gradients, LOSSES.astype(np.float64), strict=True):
        means = 0.8 * means + 0.2 * g / losses[:, None]
        norms = np.linalg.norm(means, axis=1)
        yield sum(norms.max() / norm * mean for norm, mean in zip(norms, means, strict=True))


def reference_excess_mtl(gradients):
    squares, weights, first = np.zeros_like(gradients[0]), np.full(K, 1 / K), None
    for g in gradients:
        squares = squares + g**2
        hessian = np.sqrt(squares)
        excess = np.sum(g**2 / np.where(hessian > 0, hessian, 1), axis=1)
        if first is None:
            first = excess
        else:
            weights = weights * np.exp(0.5 * excess / first)
            weights = weights / weights.sum()
        yield weights @ g


REFERENCES = {
    "moco": reference_moco,
    "db_mtl": reference_db_mtl,
    "excess_mtl": reference_excess_mtl,
}


@every_stateful_method
@every_scope
def test_several_steps_against_the_formulas(name, scope):
    together = ("first", "second") if scope == "shared" else ("first", "heads", "second")
    gradients = [vectors(grads, together) for grads in DENSE]
    updates, _ = run(name, RAGGED, scope)
    for found, expected, grads in zip(updates, REFERENCES[name](gradients), DENSE, strict=True):
        flat = [jax.tree.leaves(found[key]) for key in together]
        flat = np.concatenate([np.ravel(leaf) for group in flat for leaf in group])
        np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-5)
        if scope == "shared":
            own = jax.tree.map(lambda leaf: leaf.sum(axis=0), grads["heads"])
            assert_close(found["heads"], own)


def test_graddrop_against_the_formula():
    leaks = np.array([0, 0.3, 1])
    key = jax.random.key(0)
    updates, _ = run("graddrop", RAGGED)
    for found, grads in zip(updates, DENSE, strict=True):
        key, *keys = jax.random.split(key, len(jax.tree.leaves(PARAMS)) + 1)
        for u, g, k in zip(jax.tree.leaves(found), jax.tree.leaves(grads), keys, strict=True):
            g = np.asarray(g, np.float64)
            drawn = np.asarray(jax.random.uniform(k, g.shape[1:]))
            purity = 0.5 * (1 + g.sum(axis=0) / np.abs(g).sum(axis=0))
            mask = (purity > drawn) * (g > 0) + (purity < drawn) * (g < 0)
            leak = leaks.reshape(-1, *[1] * (g.ndim - 1))
            expected = np.sum((leak + (1 - leak) * mask) * g, axis=0)
            np.testing.assert_allclose(u, expected, rtol=1e-5, atol=1e-6)
        assert_close(found["heads"], jax.tree.map(lambda g: g.sum(axis=0), grads["heads"]))


def test_graddrop_draws_signs_as_often_as_they_weigh():
    """Pure GradDrop keeps 3 with probability 3/4, and -1 with 1/4: 2, as the sum, on average."""
    rows = jnp.broadcast_to(jnp.array([[3.0], [-1.0]]), (2, 20_000))
    tx = osgd_jax.graddrop(jax.random.key(3))
    update, state = tx.update(rows, tx.init(rows[0]))
    assert set(np.unique(update)) == {3.0, -1.0}
    np.testing.assert_allclose(update.mean(), 2.0, atol=0.05)
    again, _ = tx.update(rows, state)
    assert not np.array_equal(update, again)
    np.testing.assert_array_equal(tx.update(rows, tx.init(rows[0]))[0], update)


@every_method
def test_dense_and_ragged_with_and_without_jit_in_a_scan(name):
    tx, _ = made(name)
    updates, state = run(name, RAGGED)
    dense_updates, dense_state = run(name, DENSE)
    assert_close(dense_updates, updates)
    assert_close(jax.tree.leaves(dense_state)[1:], jax.tree.leaves(state)[1:])

    eager, _ = tx.update(RAGGED[0], tx.init(PARAMS), PARAMS, losses=list(map(float, LOSSES[0])))
    assert_close(eager, updates[0])

    def step(state, inputs):
        updates, state = tx.update(inputs[0], state, PARAMS, losses=inputs[1])
        return state, updates

    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *RAGGED)
    last, scanned = jax.lax.scan(step, tx.init(PARAMS), (stacked, jnp.asarray(LOSSES)))
    assert_close(scanned, jax.tree.map(lambda *leaves: jnp.stack(leaves), *updates))
    assert jax.tree.map(jnp.shape, last) == jax.tree.map(jnp.shape, tx.init(PARAMS))


@every_method
def test_the_state_follows_from_the_parameters(name):
    tx, update = made(name)
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    grads = jax.tree.map(lambda g: g.astype(jnp.bfloat16), RAGGED[0])
    state = tx.init(params)
    updates, after = tx.update(grads, state, params, losses=LOSSES[0])
    shapes = functools.partial(jax.tree.map, lambda leaf: (leaf.shape, leaf.dtype))
    assert shapes(after) == shapes(state)
    assert shapes(updates) == shapes(params)
    assert_close(update(RAGGED[0], tx.init(PARAMS), LOSSES[0])[0], updates, rtol=0.05, atol=0.05)
    if name != "graddrop":
        expected = jax.tree.map(lambda p: ((K, *p.shape), jnp.dtype("float32")), params)
        assert shapes(state.memory) == expected
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(after.memory["heads"]))
    assert tx.update({}, tx.init({}), {}, losses=LOSSES[0])[0] == {}


@every_method
def test_zeros_are_no_special_case(name):
    tx, update = made(name, "all")
    zeros = jax.tree.map(jnp.zeros_like, RAGGED[0])
    updates, state = update(zeros, tx.init(PARAMS), LOSSES[0])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    updates, state = update(RAGGED[0], state, LOSSES[1])
    updates, _ = update(zeros, state, LOSSES[2])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))


@every_method
@pytest.mark.parametrize("exponents", [(-30, 0, 30), (-18,) * 3, (18,) * 3, (30,) * 3])
def test_finite_for_gradients_of_all_scales(name, exponents):
    scales = np.array([10.0**exponent for exponent in exponents], np.float32)
    grads = [
        jax.tree.map(lambda g: g * scales.reshape(-1, *[1] * (g.ndim - 1)), dense)
        for dense in DENSE
    ]
    for dense, updates in zip(grads, run(name, grads)[0], strict=True):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates))
        own = jax.tree.map(lambda leaf: leaf.sum(axis=0), dense["heads"])
        assert_close(updates["heads"], own, atol=0)


@every_stateful_method
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_comes_out_as_nan_and_is_not_remembered(name, bad):
    tx, update = made(name)
    _, state = update(RAGGED[0], tx.init(PARAMS), LOSSES[0])
    first = DENSE[1]["first"].at[1, 0, 0].set(bad)
    broken = osgd_jax.to_task_rows({**DENSE[1], "first": first}, REACH)
    updates, after = update(broken, state, LOSSES[1])
    assert np.isnan(updates["first"]).all()
    assert np.isnan(updates["second"]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(updates["heads"]))
    jax.tree.map(np.testing.assert_array_equal, after, state)


def test_graddrop_lets_a_nan_through():
    rows = jnp.ones((2, 3)).at[0, 1].set(jnp.nan).at[1, 2].set(-jnp.inf)
    tx = osgd_jax.graddrop(0)
    update, _ = tx.update(rows, tx.init(rows[0]))
    np.testing.assert_array_equal(np.isnan(update), [False, True, True])


def test_a_loss_that_is_not_finite_makes_db_mtl_nan():
    tx, update = made("db_mtl")
    updates, state = update(RAGGED[0], tx.init(PARAMS), np.array([1, np.nan, 1], np.float32))
    assert np.isnan(updates["first"]).all()
    jax.tree.map(np.testing.assert_array_equal, state, tx.init(PARAMS))


@every_stateful_method
def test_parameters_of_one_loss_each_keep_their_own_gradients(name):
    grads = RAGGED[0]["heads"]
    tx = make(name)
    state = tx.init(PARAMS["heads"])
    updates, after = tx.update(grads, state, PARAMS["heads"], losses=LOSSES[0])
    assert_close(updates, jax.tree.map(lambda leaf: leaf.sum(axis=0), DENSE[0]["heads"]))
    jax.tree.map(np.testing.assert_array_equal, after, state)


@every_method
def test_training_goes_down(name):
    """Three regressions that share a matrix, in a chain with an optimizer."""
    rng = np.random.default_rng(0)
    inputs = jnp.asarray(rng.normal(size=(16, 4)), jnp.float32)
    targets = jnp.asarray(rng.normal(size=(3, 16)), jnp.float32)
    params = {"shared": jnp.eye(4), "heads": [jnp.zeros(4)] * 3}

    def loss_fn(params):
        hidden = inputs @ params["shared"]
        return tuple(
            jnp.mean((hidden @ head - target) ** 2) + 0.1
            for head, target in zip(params["heads"], targets, strict=True)
        )

    tx = optax.chain(make(name), optax.sgd(0.02))

    def step(carry, _):
        params, state = carry
        losses, grads = osgd_jax.value_and_task_grads(loss_fn)(params)
        updates, state = tx.update(grads, state, params, losses=losses)
        return (optax.apply_updates(params, updates), state), jnp.stack(losses)

    _, losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=100))(
        (params, tx.init(params))
    )
    assert (losses[-1] < losses[0]).all()


ERRORS = {
    "losses missing": (
        lambda: update_of(osgd_jax.db_mtl(K), RAGGED[0]),
        r"db_mtl .*losses=losses",
    ),
    "losses of another number": (
        lambda: update_of(osgd_jax.db_mtl(K), RAGGED[0], losses=jnp.ones(2)),
        "losses has 2 losses; the gradients are of 3 tasks",
    ),
    "number of tasks": (
        lambda: update_of(osgd_jax.moco(2), RAGGED[0]),
        r"moco\(num_tasks=2\) .* 3 tasks",
    ),
    "unknown scope": (lambda: osgd_jax.excess_mtl(K, scope="some"), "scope='some' is unknown"),
    "several groups": (
        lambda: update_of(osgd_jax.excess_mtl(K, scope="leaf"), RAGGED[0]),
        "excess_mtl keeps a state per task.*scope='shared'",
    ),
    "beta": (lambda: osgd_jax.db_mtl(K, beta=1.5), "beta=1.5 must be between 0 and 1"),
    "gamma": (lambda: osgd_jax.moco(K, gamma=-1), "gamma=-1 must be at least 0"),
    "step size": (lambda: osgd_jax.excess_mtl(K, -1.0), "step_size=-1.0 must be at least 0"),
    "no key": (lambda: osgd_jax.graddrop(None), "needs a PRNG key or a seed"),
    "leak": (lambda: osgd_jax.graddrop(0, leak=2), "leak=2 must be between 0 and 1"),
    "leaks": (
        lambda: update_of(osgd_jax.graddrop(0, leak=(0, 1)), RAGGED[0]),
        "leak has 2 numbers; there are 3 tasks",
    ),
}


def update_of(tx, grads, **kwargs):
    return jax.eval_shape(lambda g: tx.update(g, tx.init(PARAMS), PARAMS, **kwargs)[0], grads)


@pytest.mark.parametrize("case", ERRORS)
def test_errors(case):
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
