"""Weightings that average over steps or follow the losses, against their formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from osgd_jax import weightings

pytestmark = pytest.mark.numerical

STEPS = 10
RNG = np.random.default_rng(0)
ROWS = RNG.normal(size=(STEPS, 3, 8)) * 10.0 ** RNG.uniform(-2, 2, (STEPS, 3, 1))
LOSSES = 10.0 ** RNG.uniform(-3, 1, (STEPS, 3))
KEYS = jax.random.split(jax.random.key(0), STEPS)


def run(weighting, rows=ROWS, losses=LOSSES, keys=KEYS):
    """Weights of each step, float64 `[steps, K]`."""

    def step(state, inputs):
        rows, losses, key = inputs
        weights, state = weighting.weigh(rows @ rows.T, state, losses=losses, key=key)
        return state, weights

    inputs = (jnp.asarray(rows, jnp.float32), jnp.asarray(losses, jnp.float32), keys)
    return np.float64(jax.jit(lambda x: jax.lax.scan(step, weighting.init(), x)[1])(inputs))


def softmax(logits):
    exponentials = np.exp(logits - np.max(logits))
    return exponentials / exponentials.sum()


def running_mean(values, decay):
    means = [values[0]]
    for value in values[1:]:
        means.append(decay * means[-1] + (1 - decay) * value)
    return np.array(means)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_smooth_is_the_running_mean_of_the_weights(decay):
    each = run(weightings.mgda())
    found = run(weightings.smooth(weightings.mgda(), 3, decay))
    np.testing.assert_allclose(found, running_mean(each, decay), rtol=1e-4, atol=1e-6)
    assert not np.allclose(each[0], each[1])


def test_smooth_keeps_the_state_of_the_weighting_and_passes_losses_and_keys():
    for inner in (weightings.dwa(3, period=2), weightings.random(), weightings.famo(3)):
        found = run(weightings.smooth(inner, 3, 0.8))
        np.testing.assert_allclose(found, running_mean(run(inner), 0.8), rtol=1e-4)


def test_smooth_leaves_the_mean_of_an_absent_task_alone():
    rows = ROWS.copy()
    rows[[0, 3, 4], 1] = 0
    each, found = (
        run(weightings.nash_mtl(), rows),
        run(weightings.smooth(weightings.nash_mtl(), 3, 0.7), rows),
    )
    there = [1, 2, 5, 6, 7, 8, 9]
    np.testing.assert_allclose(found[there, 1], running_mean(each[there, 1], 0.7), rtol=1e-4)
    np.testing.assert_allclose(found[:, [0, 2]], running_mean(each[:, [0, 2]], 0.7), rtol=1e-4)


def test_the_decay_of_smooth_may_follow_a_schedule():
    def make(decay):
        return osgd_jax.aggregate(weightings.smooth(weightings.mgda(), 3, decay), scope="all")

    tx = optax.inject_hyperparams(make)(decay=lambda step: 1 - 1 / (step + 1))
    params = jnp.zeros(8)
    state, found = tx.init(params), []
    for rows in ROWS[:4]:
        update, state = jax.jit(tx.update)(jnp.asarray(rows, jnp.float32), state, params)
        found.append(update)
    # With these, the running mean is the plain mean.
    weights = np.cumsum(run(weightings.mgda())[:4], axis=0) / np.arange(1, 5)[:, None]
    np.testing.assert_allclose(found, np.einsum("nk,nkp->np", weights, ROWS[:4]), rtol=1e-3)


def test_inverse_norms():
    norms = np.linalg.norm(ROWS, axis=2)
    each = norms.mean(axis=1, keepdims=True) / norms
    found = run(weightings.inverse_norms(3))
    np.testing.assert_allclose(found, running_mean(each, 0.9), rtol=1e-5)
    rows = ROWS.copy()
    rows[:, 1] = 0
    without = np.delete(run(weightings.inverse_norms(3, 0.5), rows), 1, axis=1)
    np.testing.assert_allclose(
        without, run(weightings.inverse_norms(2, 0.5), np.delete(ROWS, 1, axis=1)), rtol=1e-5
    )


# Which tasks have a gradient at each step.
ALL = np.ones((STEPS, 3), bool)
SOME = ALL.copy()
SOME[[0, 3, 4], 1] = SOME[7, 2] = False
presence = pytest.mark.parametrize("present", [ALL, SOME], ids=["all", "some"])


def run_present(weighting, present):
    """Weights of the tasks that are present, zero for the others, whose losses are rubbish."""
    losses = np.where(present, LOSSES, 1e6)
    return np.where(present, run(weighting, ROWS * present[..., None], losses), 0)


def softmax_of(logits, present):
    weights = np.zeros(len(logits))
    weights[present] = softmax(logits[present])
    return weights


@presence
@pytest.mark.parametrize(
    ("alpha", "rho", "temperature"), [(0.9, 0.5, 1.0), (0.5, 0.0, 3.0), (0.999, 1.0, 0.1)]
)
def test_relobralo(alpha, rho, temperature, present):
    drawn = [bool(jax.random.bernoulli(key, rho)) for key in KEYS]
    assert len(set(drawn)) == (2 if rho == 0.5 else 1)
    weights, first, last, wanted = np.ones(3), np.full(3, np.nan), np.full(3, np.nan), []
    for losses, there, kept in zip(LOSSES, present, drawn, strict=True):
        new = there & np.isnan(first)
        first[new] = last[new] = losses[new]
        now, since_start = (
            there.sum() * softmax_of(losses / (temperature * earlier + 1e-12), there)
            for earlier in (last, first)
        )
        history = weights if kept else since_start
        weights = np.where(there, alpha * history + (1 - alpha) * now, weights)
        last = np.where(there, losses, last)
        wanted.append(np.where(there, weights, 0))
    found = run_present(weightings.relobralo(3, alpha, rho, temperature), present)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    if present.all():
        np.testing.assert_allclose(found[0], 1)


@presence
@pytest.mark.parametrize("beta", [0.1, -2.0])
def test_softadapt(beta, present):
    last, wanted = np.full(3, np.nan), []
    for losses, there in zip(LOSSES, present, strict=True):
        wanted.append(softmax_of(beta * np.nan_to_num(losses - last), there))
        last = np.where(there, losses, last)
    found = run_present(weightings.softadapt(3, beta), present)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_relobralo_asks_for_a_key():
    weighting = weightings.relobralo(2)
    with pytest.raises(ValueError, match="key="):
        weighting.weigh(jnp.eye(2), weighting.init(), losses=jnp.ones(2))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("inverse_norms", {"decay": 1.0}),
        ("inverse_norms", {"decay": -0.1}),
        ("relobralo", {"alpha": 1.5}),
        ("relobralo", {"rho": -1}),
        ("relobralo", {"temperature": 0}),
        ("softadapt", {"beta": float("inf")}),
    ],
)
def test_arguments_out_of_range(name, arguments):
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))}=.* must be"):
        getattr(weightings, name)(3, **arguments)


def test_smooth_checks_its_decay():
    with pytest.raises(ValueError, match="decay=2 must be"):
        weightings.smooth(weightings.mgda(), 3, decay=2)


OTHER_ROWS = RNG.normal(size=ROWS.shape) * np.linalg.norm(ROWS, axis=2, keepdims=True) / 3


def nearest_in_simplex(point):
    """By bisection for the threshold."""
    low, high = point.min() - 1, point.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(point - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(point - low, 0)


def cross_gramians(rows=ROWS, other_rows=OTHER_ROWS):
    products = rows @ other_rows.transpose(0, 2, 1)
    return (products + products.transpose(0, 2, 1)) / 2


def modo_weights(gramians, gamma, rho):
    weights, found = np.full(gramians.shape[1], 1 / gramians.shape[1]), []
    for gramian in gramians:
        weights = nearest_in_simplex(weights - gamma * (gramian @ weights + rho * weights))
        found.append(weights)
    return np.array(found)


def sdmgrad_weights(gramians, strength, preference, rate, momentum, steps):
    weights, found = np.full(gramians.shape[1], 1 / gramians.shape[1]), []
    for gramian in gramians:
        norm = np.sqrt(np.maximum(np.diagonal(gramian), 0)).mean()
        velocity = np.zeros_like(weights)
        for _ in range(steps if norm > 0 else 0):
            slope = gramian / norm**2 @ (weights + strength * preference)
            velocity = momentum * velocity + slope
            weights = nearest_in_simplex(weights - rate * velocity)
        found.append((weights + strength * preference) / (1 + strength))
    return np.array(found)


def run_gramians(weighting, gramians):
    def step(state, gramian):
        weights, state = weighting.weigh(gramian, state)
        return state, weights

    gramians = jnp.asarray(gramians, jnp.float32)
    return np.float64(jax.jit(lambda g: jax.lax.scan(step, weighting.init(), g)[1])(gramians))


@pytest.mark.parametrize(("gamma", "rho"), [(1e-3, 0.0), (0.1, 0.1), (1e-4, 100.0)])
def test_modo(gamma, rho):
    found = run_gramians(weightings.modo(3, gamma, rho), cross_gramians())
    wanted = modo_weights(cross_gramians(), gamma, rho)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)
    assert len(np.unique(wanted.round(6), axis=0)) > 3


@pytest.mark.parametrize(
    ("strength", "preference", "rate", "momentum", "steps"),
    [
        (0.3, (1, 1, 1), 0.1, 0.5, 20),
        (0.0, (1, 1, 1), 0.02, 0.9, 5),
        (2.0, (1, 2, 5), 1.0, 0.0, 1),
    ],
)
def test_sdmgrad(strength, preference, rate, momentum, steps):
    weighting = weightings.sdmgrad(
        3, strength, preference, learning_rate=rate, momentum=momentum, steps=steps
    )
    found = run_gramians(weighting, cross_gramians())
    shares = np.array(preference) / sum(preference)
    wanted = sdmgrad_weights(cross_gramians(), strength, shares, rate, momentum, steps)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)
    assert len(np.unique(wanted.round(6), axis=0)) > 3


def test_without_noise_modo_and_sdmgrad_approach_the_shortest_direction():
    rows = np.array([[1.0, 0.2, 0.0], [-0.6, 0.8, 0.0], [0.0, 0.3, 0.9]])
    gramians = np.tile(rows @ rows.T, (300, 1, 1))
    (shortest,) = run(weightings.mgda(), rows[None], LOSSES[:1], KEYS[:1])
    for weighting in (
        weightings.modo(3, 0.1, 0.0),
        weightings.sdmgrad(3, 0.0, learning_rate=0.1),
    ):
        np.testing.assert_allclose(run_gramians(weighting, gramians)[-1], shortest, atol=1e-3)


def test_names_in_the_preference_of_sdmgrad():
    def losses(p):
        return {"pde": jnp.sum((p - 1) ** 2), "bc": jnp.sum(p**2)}

    params = jnp.array([3.0, 1.0])
    grads = osgd_jax.task_grads(losses)(params)
    named, numbered = (
        osgd_jax.aggregate(weightings.sdmgrad(2, 1e6, preference))
        for preference in ({"pde": 3.0, "bc": 1.0}, None)
    )
    update, _ = named.update(grads, named.init(params), params, others=grads)
    by_name = jax.grad(lambda p: 0.75 * losses(p)["pde"] + 0.25 * losses(p)["bc"])(params)
    np.testing.assert_allclose(update, by_name, rtol=1e-4)
    equal, _ = numbered.update(grads, numbered.init(params), params, others=grads)
    assert not np.allclose(update, equal)


@pytest.mark.parametrize("form", ["dense", "task rows"])
def test_updates_from_two_batches(form):
    """Along the mean of both batches, by the weights that their unbiased Gramian gives."""
    rng = np.random.default_rng(1)
    batches = rng.normal(size=(5, 2, 3, 7))
    batches[..., 0, 4:] = 0
    tx = osgd_jax.aggregate(weightings.modo(3, 0.05, 0.0))
    update, params = jax.jit(tx.update), {"a": jnp.zeros(4), "b": jnp.zeros(3)}
    state, found = tx.init(params), []
    for both in batches:
        trees = [
            {"a": jnp.asarray(x[:, :4], jnp.float32), "b": jnp.asarray(x[:, 4:], jnp.float32)}
            for x in both
        ]
        if form == "task rows":
            trees[0] = osgd_jax.to_task_rows(trees[0], {"a": (0, 1, 2), "b": (1, 2)})
        updates, state = update(trees[0], state, params, others=trees[1])
        found.append(np.concatenate([updates["a"], updates["b"]]))
    weights = modo_weights(cross_gramians(batches[:, 0], batches[:, 1]), 0.05, 0.0)
    np.testing.assert_allclose(
        found, np.einsum("nk,nkp->np", weights, batches.mean(axis=1)), rtol=1e-4, atol=1e-5
    )
