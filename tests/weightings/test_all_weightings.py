"""Properties of every weighting, and the ones that the catalogue claims."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import osgd_jax
from osgd_jax import weightings
from tests.weightings import matrices
from tests.weightings.catalogue import CATALOGUE, PROPERTIES, extra_args

NAMES = sorted(CATALOGUE)
KEY = jax.random.key(7)

every_weighting = pytest.mark.parametrize("name", NAMES)


def claiming(name: str):
    """Parametrise over the weightings that claim a property."""
    return pytest.mark.parametrize("name", [n for n in NAMES if name in CATALOGUE[n].properties])


@functools.cache
def made(name: str, num_tasks: int) -> weightings.Weighting:
    return CATALOGUE[name].make(num_tasks)


@functools.cache
def compiled(name: str) -> weightings.Weighting:
    """The weighting of three tasks with a compiled `weigh`, which all tests here share."""
    weighting = made(name, 3)
    return weighting._replace(weigh=jax.jit(weighting.weigh))


def inputs(name: str, num_tasks: int):
    """The losses and the key that the catalogue says this weighting takes."""
    entry = CATALOGUE[name]
    losses = matrices.losses(num_tasks) if entry.losses else None
    return losses, None if entry.key == "no" else KEY


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def directions(weights: np.ndarray, stack: np.ndarray) -> np.ndarray:
    return np.einsum("nk,nkp->np", weights, stack.astype(np.float64))


def test_the_catalogue_is_complete():
    assert set(NAMES) == set(weightings.__all__) - {"Weighting"}
    assert all(entry.properties <= set(PROPERTIES) for entry in CATALOGUE.values())


@every_weighting
def test_its_repr_is_its_call(name):
    assert repr(made(name, 3)).startswith(f"{name}(")


def test_repr():
    assert repr(weightings.upgrad()) == "upgrad(preference=None)"
    assert repr(weightings.cagrad(0.2)) == "cagrad(c=0.2)"
    nested = weightings.smooth(weightings.mgda(), 3, decay=0.9)
    assert repr(nested) == "smooth(weighting=mgda(), num_tasks=3, decay=0.9)"
    unnamed = weightings.Weighting(tuple, lambda gramian, state: (gramian[0], state))
    assert repr(unnamed).startswith("Weighting(init=<class 'tuple'>, weigh=")


@every_weighting
@pytest.mark.parametrize("num_tasks", [1, 2, 5])
def test_finite_over_the_zoo(name, num_tasks):
    weighting = made(name, num_tasks)
    stack = matrices.stacked(matrices.zoo(num_tasks))
    weights = matrices.weights_of(weighting, stack, *inputs(name, num_tasks))
    assert weights.shape == stack.shape[:2]
    assert np.isfinite(weights).all()


@every_weighting
def test_finite_for_64_tasks(name):
    zoo = matrices.zoo(64)
    stack = np.stack([zoo[kind] for kind in ("typical", "conflicting", "duplicates", "zero row")])
    weights = matrices.weights_of(made(name, 64), stack, *inputs(name, 64))
    assert np.isfinite(weights).all()


@every_weighting
def test_deterministic_for_a_key_and_the_same_without_jit(name):
    losses, key = inputs(name, 3)
    gramian, scales = matrices.scaled_gramian(made(name, 3), matrices.zoo(3)["conflicting"])

    def weigh(weighting):
        return matrices.call(weighting, gramian, scales, weighting.init(), losses, key)

    eager, first, again = weigh(made(name, 3)), weigh(compiled(name)), weigh(compiled(name))
    assert jax.tree.all(jax.tree.map(jnp.array_equal, first, again))
    np.testing.assert_allclose(eager[0], first[0], rtol=2e-5, atol=1e-6)


@every_weighting
def test_state_keeps_its_structure_and_the_weights_their_dtype(name):
    weighting, (losses, key) = compiled(name), inputs(name, 3)
    gramian, scales = matrices.scaled_gramian(weighting, matrices.zoo(3)["typical"])

    def step(state, _):
        weights, state = matrices.call(weighting, gramian, scales, state, losses, key)
        return state, weights

    # The scan is traced only: that is where a state of another structure or dtype is refused.
    jax.eval_shape(lambda state: jax.lax.scan(step, state, length=5), weighting.init())
    state = weighting.init()
    for _ in range(5):
        state, weights = step(state, None)
        assert weights.shape == (3,)
        assert weights.dtype == gramian.dtype
        assert jnp.isfinite(weights).all()


# Weights of these depend on K by more than a factor, on a draw for each task, or on the first task.
DEPENDING = ("constant", "pcd", "random", "stch")


@pytest.mark.parametrize("name", [n for n in NAMES if n not in DEPENDING])
def test_a_task_with_a_zero_gradient_takes_no_part(name):
    rows = matrices.stacked(matrices.well_conditioned(2))
    with_zeros = np.zeros((len(rows), 5, matrices.COLUMNS), np.float32)
    with_zeros[:, 1::2] = rows
    losses = matrices.losses(2) if CATALOGUE[name].losses else None
    losses_with_zeros = None if losses is None else jnp.zeros(5).at[1::2].set(losses)
    key = KEY if CATALOGUE[name].key == "required" else None
    without = directions(matrices.weights_of(made(name, 2), rows, losses, key), rows)
    found = directions(
        matrices.weights_of(made(name, 5), with_zeros, losses_with_zeros, key), with_zeros
    )
    for a, b in zip(found, without, strict=True):
        np.testing.assert_allclose(unit(a), unit(b), atol=5e-5)


@every_weighting
def test_a_second_batch_is_asked_for_where_it_is_used(name):
    params, grads, losses = small_problem()
    tx = osgd_jax.aggregate(made(name, 3), key=KEY)
    others, message = second_grads()[0], "others.* must be left out.*modo and weightings.sdmgrad"
    if CATALOGUE[name].others:
        others, message = None, "others must be .* second, independent batch.*others=second_grads"
    with pytest.raises(ValueError, match=message):
        tx.update(grads, tx.init(params), params, losses=losses, others=others)


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].losses])
def test_losses_are_asked_for(name):
    weighting = made(name, 2)
    with pytest.raises(ValueError, match=rf"{name} .*losses=losses"):
        weighting.weigh(jnp.eye(2), weighting.init(), losses=None)
    with pytest.raises(ValueError, match="one loss for each of the 2 tasks"):
        weighting.weigh(jnp.eye(2), weighting.init(), losses=jnp.ones(3))


OF_SO_MANY_TASKS = (
    "dwa",
    "famo",
    "gradnorm",
    "gradvac",
    "inverse_norms",
    "modo",
    "pcd",
    "relobralo",
    "sdmgrad",
    "smooth",
    "softadapt",
    "uncertainty",
)


@pytest.mark.parametrize("name", OF_SO_MANY_TASKS)
def test_another_number_of_tasks_is_an_error(name):
    weighting = made(name, 2)
    with pytest.raises(ValueError, match=rf"{name}\(num_tasks=2\) .* 3 tasks"):
        weighting.weigh(jnp.eye(3), weighting.init(), losses=jnp.ones(3))


def test_random_asks_for_a_key():
    with pytest.raises(ValueError, match="key="):
        weightings.random().weigh(jnp.eye(2), ())


@pytest.mark.parametrize("name", [n for n in NAMES if CATALOGUE[n].key == "optional"])
def test_without_a_key_the_order_is_fixed(name):
    stack = matrices.stacked(matrices.zoo(5))
    first, again = (matrices.weights_of(made(name, 5), stack) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    drawn = [matrices.weights_of(made(name, 5), stack, key=jax.random.key(i)) for i in range(2)]
    assert not np.allclose(drawn[0], first)
    assert not np.allclose(drawn[0], drawn[1])


@pytest.mark.parametrize("name", ["aligned_mtl", "config", "dualproj", "stch", "upgrad"])
def test_preferences(name):
    make = getattr(weightings, name)
    rows = matrices.zoo(3)["typical"]
    losses = matrices.losses(3)
    ones = matrices.direction_of(make(preference=[1 / 3] * 3), rows, losses)
    np.testing.assert_allclose(ones, matrices.direction_of(make(), rows, losses), rtol=1e-4)
    first = matrices.direction_of(make(preference=(5, 1, 1)), rows, losses)
    assert not np.allclose(unit(first), unit(ones), atol=1e-3)
    with pytest.raises(ValueError, match="non-negative"):
        make(preference=(1, -1))
    with pytest.raises(ValueError, match="preference has 2 numbers; there are 3 tasks"):
        matrices.direction_of(make(preference=(1, 2)), rows, losses)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cagrad", {"c": -1}),
        ("fairgrad", {"alpha": 0.4}),
        ("gradvac", {"num_tasks": 2, "beta": 2}),
        ("dwa", {"num_tasks": 2, "period": 0}),
        ("stch", {"mu": 0}),
        ("modo", {"num_tasks": 2, "gamma": 0}),
        ("modo", {"num_tasks": 2, "rho": -1}),
        ("sdmgrad", {"num_tasks": 2, "lambda_": -1}),
        ("sdmgrad", {"num_tasks": 2, "preference": (0, 0)}),
        ("sdmgrad", {"num_tasks": 2, "momentum": 1}),
        ("sdmgrad", {"num_tasks": 2, "steps": 0}),
    ],
)
def test_arguments_out_of_range(name, arguments):
    with pytest.raises(ValueError, match="must"):
        getattr(weightings, name)(**arguments)


def test_constant_needs_a_weight_for_each_task():
    with pytest.raises(ValueError, match="weights has 2 numbers; there are 3 tasks"):
        weightings.constant((1, 2)).weigh(jnp.eye(3), ())


# The properties that the catalogue claims.


@claiming("non-conflicting")
def test_non_conflicting(name):
    stack = matrices.stacked(matrices.zoo(5)).astype(np.float64)
    weights = matrices.weights_of(made(name, 5), stack, *inputs(name, 5))
    norms = np.linalg.norm(stack, axis=2)
    products = np.einsum("nkp,np->nk", stack, directions(weights, stack))
    rounding = 1e-5 * norms * np.sum(np.abs(weights) * norms, axis=1, keepdims=True)
    assert (products >= -rounding).all()


@claiming("order")
def test_permuting_the_tasks_permutes_the_weights(name):
    losses, key = inputs(name, 5)
    stack = matrices.stacked(matrices.well_conditioned(5) | {"d": matrices.zoo(5)["duplicates"]})
    permutation = np.array([3, 0, 4, 1, 2])
    before = directions(matrices.weights_of(made(name, 5), stack, losses, key), stack)
    losses = None if losses is None else losses[permutation]
    stack = stack[:, permutation]
    after = directions(matrices.weights_of(made(name, 5), stack, losses, key), stack)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.linalg.norm(a))


@claiming("row scale")
def test_the_scale_of_a_gradient_does_not_turn_the_direction(name):
    stack = matrices.stacked(matrices.well_conditioned(5))
    scales = np.array([1, 1000, 1, 0.03, 1], np.float32)[:, None]
    before = directions(matrices.weights_of(made(name, 5), stack), stack)
    after = directions(matrices.weights_of(made(name, 5), stack * scales), stack * scales)
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(unit(a), unit(b), atol=1e-4)


@claiming("stops")
def test_zero_at_pareto_stationary_points(name):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(8, 5, matrices.COLUMNS))
    stack[:, -1] = -np.einsum("nk,nkp->np", rng.uniform(0.3, 2, (8, 4)), stack[:, :-1])
    weights = matrices.weights_of(made(name, 5), stack.astype(np.float32))
    lengths = np.linalg.norm(directions(weights, stack), axis=1)
    # Products of norms are known to 1e-7, so norms near zero to the root of that.
    assert (lengths < 1e-3 * np.linalg.norm(stack, axis=2).max(axis=1)).all()


@claiming("Pareto")
def test_no_weight_is_negative(name):
    stack = matrices.stacked(matrices.zoo(5))
    weights = matrices.weights_of(made(name, 5), stack, *inputs(name, 5))
    assert (weights >= 0).all()
    assert (weights.max(axis=1) > 0)[stack.any(axis=(1, 2))].all()


# Through `aggregate`.


def loss_fn(params, batch):
    hidden = jnp.tanh(batch @ params["shared"])
    second = jnp.tanh(hidden @ params["deep"])
    return (
        jnp.mean((hidden @ params["heads"][0] - 1) ** 2),
        jnp.mean((second @ params["heads"][1] + 1) ** 2),
        jnp.mean((second @ params["heads"][2]) ** 2) + 0.1,
    )


@functools.cache
def small_problem():
    rng = np.random.default_rng(3)
    params = {
        "shared": rng.normal(size=(4, 3)),
        "deep": rng.normal(size=(3, 3)),
        "heads": [rng.normal(size=(3,)) for _ in range(3)],
    }
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    batch = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    return params, osgd_jax.task_grads(loss_fn)(params, batch), jnp.stack(loss_fn(params, batch))


@functools.cache
def second_grads():
    """Gradients of another batch, and the same as dense arrays."""
    batch = jnp.asarray(np.random.default_rng(4).normal(size=(8, 4)), jnp.float32)
    grads = osgd_jax.task_grads(loss_fn)(small_problem()[0], batch)
    return grads, osgd_jax.densify(grads)


@functools.cache
def compiled_step(name):
    """The transformation, with its update lowered and compiled."""
    params, grads, losses = small_problem()
    tx = osgd_jax.aggregate(made(name, 3), key=KEY)
    lowered = jax.jit(tx.update).lower(
        grads, tx.init(params), params, **extra_args(name, losses=losses, others=second_grads()[0])
    )
    return tx, lowered, lowered.compile()


# Weightings that keep a state per task, which is for one group.
WITH_STATE = [name for name in NAMES if jax.tree.leaves(made(name, 3).init())]


@every_weighting
def test_dense_and_ragged_gradients_of_several_groups(name):
    params, ragged, losses = small_problem()
    # Only the weights are compiled, once for all groups.
    scope = "shared" if name in WITH_STATE else "reach"
    tx = osgd_jax.aggregate(compiled(name), scope=scope, key=KEY)
    found, expected = (
        tx.update(grads, tx.init(params), params, **extra_args(name, losses=losses, others=others))[
            0
        ]
        for grads, others in zip((ragged, osgd_jax.densify(ragged)), second_grads(), strict=True)
    )
    jax.tree.map(lambda p, u: np.testing.assert_equal(u.shape, p.shape), params, found)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert_close(found, expected)


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("scope", ["leaf", "reach"])
def test_a_state_per_task_is_for_one_group(name, scope):
    params, grads, losses = small_problem()
    tx = osgd_jax.aggregate(made(name, 3), scope=scope, key=KEY)
    extra = extra_args(name, losses=losses, others=second_grads()[0])
    with pytest.raises(ValueError, match="keeps a state per task"):
        tx.update(grads, tx.init(params), params, **extra)


@pytest.mark.parametrize("name", WITH_STATE)
@pytest.mark.parametrize("bad", ["gradient inf", "gradient nan", "loss nan", "loss inf"])
def test_what_is_not_finite_is_not_remembered(name, bad):
    params, grads, losses = small_problem()
    where, value = bad.split()
    bad_grads, bad_losses = grads, losses
    if where == "loss":
        bad_losses = losses.at[1].set(float(value))
    else:
        bad_grads = jax.tree.map(lambda leaf: leaf.at[:1].set(float(value)), grads)
    tx, _, update = compiled_step(name)

    def run(*steps):
        state = tx.init(params)
        for each, values in steps:
            extra = extra_args(name, losses=values, others=second_grads()[0])
            updates, state = update(each, state, params, **extra)
        return updates, state

    good, spoiled = (grads, losses), (bad_grads, bad_losses)
    after, state = run(good, spoiled, good)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, state.weighting)))
    if where == "gradient":
        # As if the bad step had not been, but for the random numbers that it drew.
        updates, state = run(good, spoiled)
        assert np.isnan(updates["shared"]).all()
        jax.tree.map(np.testing.assert_array_equal, state.weighting, run(good)[1].weighting)


@every_weighting
def test_a_compiled_step_stays_on_the_device_and_is_the_same(name):
    params, grads, losses = small_problem()
    tx, lowered, program = compiled_step(name)
    text = lowered.as_text() + (program.as_text() or "")
    for word in ("callback", "infeed", "outfeed", "send", "recv", "host_compute", "MoveToHost"):
        assert word not in text
    # For K numbers it is slow on accelerators. In `pcd` it is JAX's LU decomposition, on CPU only.
    assert "scatter" not in text or name == "pcd"
    eager = osgd_jax.aggregate(compiled(name), key=KEY)
    arguments = (grads, tx.init(params), params)
    extra = extra_args(name, losses=losses, others=second_grads()[0])
    expected, _ = eager.update(*arguments, **extra)
    assert_close(program(*arguments, **extra)[0], expected)


def assert_close(actual, expected):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), actual, expected
    )
