"""`pcd` against a float64 solution that tries every set of active constraints."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import osgd_jax
from osgd_jax import weightings
from tests.weightings import matrices

pytestmark = pytest.mark.numerical


def nearest(rows, primary, tau):
    """The d nearest to the primary row with <g_j, d> >= tau_j |g_j|^2 for the others, or None."""
    others = np.delete(rows, primary, axis=0)
    wanted = np.broadcast_to(tau, len(others)) * np.sum(others**2, axis=1)
    found = []
    for size in range(len(rows)):
        for active in map(list, itertools.combinations(range(len(others)), size)):
            a = others[active]
            if np.linalg.matrix_rank(a) < size:
                continue
            missing = wanted[active] - a @ rows[primary]
            multipliers = np.linalg.solve(a @ a.T, missing) if size else np.zeros(0)
            d = rows[primary] + multipliers @ a
            holds = others @ d >= wanted - 1e-9 * np.sum(others**2, axis=1)
            if (multipliers >= -1e-12).all() and holds.all():
                found.append(d)
    return min(found, key=lambda d: np.linalg.norm(d - rows[primary]), default=None)


def normalised(steps, decay, eps):
    """The rows of each step over the root of the running mean of their squared norms."""
    mean, rows = 0, []
    for step, gradients in enumerate(np.float64(steps), 1):
        mean = decay * mean + (1 - decay) * np.sum(gradients**2, axis=1)
        rows.append(gradients / np.sqrt(mean / (1 - decay**step) + eps)[:, None])
    return np.array(rows)


def expected(steps, tau=0.02, decay=0.999, eps=1e-8, primary=0):
    """The direction of each step, and by how much it is longer than normalised gradients are."""
    directions, lengths = [], []
    for gradients, rows in zip(np.float64(steps), normalised(steps, decay, eps), strict=True):
        d = nearest(rows, primary, tau)
        length = 0 if d is None else np.linalg.norm(d)
        d = rows[primary] if d is None else d
        norm = np.linalg.norm(d)
        d = d / norm * np.linalg.norm(gradients[primary]) if norm > 1e-9 else 0 * d
        directions.append(d)
        lengths.append(length)
    return np.array(directions), np.array(lengths)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(num_tasks, primary, hyperparameters, gramians, scales):
    weighting = weightings.pcd(num_tasks, *hyperparameters, primary=primary)

    def step(state, inputs):
        weights, state = weighting.weigh(inputs[0], state, scales=inputs[1])
        return state, weights

    return jax.lax.scan(step, weighting.init(), (gramians, scales))[1]


def run(steps, tau=0.02, decay=0.999, eps=1e-8, primary=0):
    """Weights and directions of a sequence of steps, by Gramians as `aggregate` makes them."""
    steps = np.asarray(steps, np.float32)
    largest = np.abs(steps).max(axis=2, keepdims=True)
    scales = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1))), dtype=np.float32)
    rows = steps / scales
    gramians = rows @ rows.transpose(0, 2, 1)
    hyperparameters = (np.float32(tau), np.float32(decay), np.float32(eps))
    weights = _run(steps.shape[1], primary, hyperparameters, gramians, scales[..., 0])
    weights = np.asarray(weights, np.float64)
    return weights, np.einsum("nk,nkp->np", weights, np.float64(steps))


def assert_same(found, wanted, steps, primary=0, relative=1e-3):
    norms = np.linalg.norm(steps[:, primary], axis=1)
    assert (np.linalg.norm(found - wanted, axis=1) <= relative * norms).all()


def made_steps(num_tasks, seed=0, num_steps=60):
    """Gradients of independent, of conflicting and of few directions, of varying lengths."""
    rng = np.random.default_rng([num_tasks, seed])
    steps = rng.normal(size=(num_steps, num_tasks, 12))
    steps[1::3] -= 1.5 * steps[1::3].mean(axis=1, keepdims=True)
    steps[2::3, :, 3:] = 0
    lengths = 10.0 ** rng.uniform(-2, 2, (1, num_tasks, 1))
    return (steps * lengths * 10.0 ** rng.uniform(-0.5, 0.5, (num_steps, num_tasks, 1))).astype(
        np.float32
    )


@pytest.mark.parametrize("num_tasks", [2, 3, 4, 5, 6])
@pytest.mark.parametrize(("tau", "decay"), [(0.02, 0.999), (0.5, 0.9), (1.0, 0.0)])
def test_against_all_active_sets(num_tasks, tau, decay):
    primary = num_tasks // 2
    steps = made_steps(num_tasks)
    weights, found = run(steps, tau, decay, primary=primary)
    wanted, lengths = expected(steps, tau, decay, primary=primary)
    # Promises that only a very long direction keeps may be dropped, as the docstring says.
    clear = lengths <= 100 * min(tau, 0.4)
    assert clear.mean() > 0.9
    assert_same(found[clear], wanted[clear], steps[clear], primary)
    assert (weights >= 0).all()


def test_the_promise_is_kept_and_the_length_is_that_of_the_primary_gradient():
    steps, tau = made_steps(5, seed=1), np.array([0.02, 0.1, 0.0, 0.3])
    _, found = run(steps, tau)
    _, lengths = expected(steps, tau)
    kept = (lengths > 0) & (lengths < 5)
    assert kept.mean() > 0.7
    np.testing.assert_allclose(
        np.linalg.norm(found, axis=1), np.linalg.norm(np.float64(steps[:, 0]), axis=1), rtol=1e-4
    )
    rows = normalised(steps, 0.999, 1e-8)
    # The direction before it was given the length of the primary gradient.
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    progress = np.einsum("nkp,np->nk", rows, unit * lengths[:, None])[:, 1:]
    squares = np.sum(rows[:, 1:] ** 2, axis=2)
    assert (progress >= tau * squares - 1e-3 * np.sqrt(squares))[kept].all()


def test_one_share_for_each_other_task_in_their_order():
    rows = np.eye(3, dtype=np.float32)
    direction = run([rows], (0.1, 0.4), primary=1)[1][0]
    np.testing.assert_allclose(direction / direction[1], [0.1, 1, 0.4], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(direction), 1, rtol=1e-5)


def test_promises_that_exclude_each_other_are_dropped():
    rows = np.array([[2, 1, 1], [0, 3, 0], [0, -1, 0]], np.float32)
    np.testing.assert_allclose(run([rows])[0], [[1, 0, 0]], atol=1e-6)
    # Three at 120 degrees: each two go together, all three do not.
    angles = 2 * np.pi / 3 * np.arange(3)
    star = np.concatenate([[[0.6, 0.8]], np.stack([np.cos(angles), np.sin(angles)], axis=1)])
    np.testing.assert_allclose(run([star])[0], [[1, 0, 0, 0]], atol=1e-6)


def test_opposed_tasks_that_are_promised_nothing_leave_what_touches_neither():
    rows = np.array([[2, 1, 1], [0, 3, 0], [0, -1, 0]], np.float32)
    direction = run([rows], 0.0)[1][0]
    np.testing.assert_allclose(direction, np.sqrt(6 / 5) * np.array([2, 0, 1]), atol=1e-5)


def test_opposite_gradients():
    rows = np.array([[1, 0], [-2, 0]], np.float32)
    np.testing.assert_allclose(run([rows])[1], [[-1, 0]], rtol=1e-5)
    np.testing.assert_allclose(run([rows], 0.0)[1], [[0, 0]], atol=1e-6)


def test_a_task_alone_and_gradients_of_zero():
    rows = np.array([[1, 2], [3, -3]], np.float32)
    np.testing.assert_allclose(run([rows[:1]])[1], rows[:1], rtol=1e-6)
    zero = 0 * rows[0]
    assert not run([[zero, rows[1]]])[1].any()
    assert not run([[zero, rows[1]]], eps=0.0)[1].any()
    np.testing.assert_allclose(run([[rows[0], zero]], eps=0.0)[1], rows[:1], rtol=1e-6)
    # A step without a gradient counts in the mean, as zero.
    steps = np.array([rows, [rows[0], zero], rows])
    wanted, _ = expected(steps, 0.5, 0.5)
    assert_same(run(steps, 0.5, 0.5)[1], wanted, steps, relative=1e-5)


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_gradients_of_any_scale(scale):
    steps = made_steps(4, num_steps=6).astype(np.float64)
    _, near = run(steps, 0.1, eps=0.0)
    _, far = run(steps * scale, 0.1, eps=0.0)
    np.testing.assert_allclose(far / scale, near, rtol=1e-3, atol=1e-3 * np.abs(near).max())


def test_many_tasks():
    steps = matrices.zoo(64)["typical"][None]
    _, found = run(steps, 0.0)
    products = np.float64(steps[0, 1:]) @ found[0]
    assert (products >= -1e-4 * np.linalg.norm(steps[0, 1:], axis=1)).all()


def test_hyperparameters_may_be_traced():
    params = {"w": jnp.zeros(3)}
    grads = {"w": jnp.asarray([[2.0, 1, 1], [-1, 3, 0]])}

    def make(tau, decay, eps):
        return osgd_jax.aggregate(weightings.pcd(2, tau, decay, eps), scope="all")

    tx = optax.inject_hyperparams(make)(tau=0.5, decay=0.9, eps=1e-6)
    plain = make(0.5, 0.9, 1e-6)
    state, plain_state = tx.init(params), plain.init(params)
    for _ in range(3):
        found, state = jax.jit(tx.update)(grads, state, params)
        wanted, plain_state = plain.update(grads, plain_state, params)
        np.testing.assert_allclose(found["w"], wanted["w"], rtol=1e-5)
    # The share can change between the steps.
    state.hyperparams["tau"] = jnp.asarray(1.0)
    assert not np.allclose(tx.update(grads, state, params)[0]["w"], wanted["w"], rtol=1e-2)


@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": -0.1},
        {"tau": 2},
        {"tau": (0.1, 2)},
        {"tau": float("nan")},
        {"tau": (0.1, 0.1, 0.1)},
        {"decay": 1.0},
        {"eps": -1e-8},
        {"primary": 3},
        {"primary": -1},
    ],
)
def test_arguments_out_of_range(arguments):
    with pytest.raises(ValueError, match=rf"{next(iter(arguments))}=.* must be"):
        weightings.pcd(3, **arguments)
