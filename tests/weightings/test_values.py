"""Weights against closed forms, definitions, and independent solutions in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from osgd_jax import weightings
from osgd_jax.weightings import _solvers
from tests.weightings import matrices

pytestmark = pytest.mark.numerical


def unit(vector):
    return vector / np.linalg.norm(vector)


# Closed forms for two tasks.

PAIRS = {
    "obtuse": [[3.0, 0.0], [-1.0, 2.0]],
    "acute": [[3.0, 0.0], [1.0, 2.0]],
    "one much longer": [[1.0, 0.2], [5.0, 2.0]],
    "nearly opposite": [[1.0, 0.1], [-2.0, 0.1]],
    "orthogonal": [[2.0, 0.0], [0.0, 0.5]],
}
ROWS = np.array(list(PAIRS.values()), np.float32)


def each_pair(weighting):
    """The gradients of each pair in float64, its weights and its direction."""
    weights = matrices.weights_of(weighting, ROWS)
    return [(*np.float64(rows), w, rows.T @ w) for rows, w in zip(ROWS, weights, strict=True)]


def test_mgda_of_two():
    for g, h, weights, _ in each_pair(weightings.mgda()):
        share = np.clip((h - g) @ h / ((h - g) @ (h - g)), 0, 1)
        np.testing.assert_allclose(weights, [share, 1 - share], atol=2e-6)


def test_pcgrad_of_two_is_twice_upgrad():
    upgrad = each_pair(weightings.upgrad())
    for (g, h, _, direction), (*_, half) in zip(
        each_pair(weightings.pcgrad()), upgrad, strict=True
    ):
        conflict = min(g @ h, 0)
        expected = (g - conflict * h / (h @ h)) + (h - conflict * g / (g @ g))
        np.testing.assert_allclose(direction, expected, atol=2e-6)
        np.testing.assert_allclose(2 * half, expected, atol=2e-5)


def test_imtl_g_of_two():
    for g, h, weights, _ in each_pair(weightings.imtl_g()):
        difference = unit(g) - unit(h)
        first = (h @ difference) / ((h - g) @ difference)
        np.testing.assert_allclose(weights, [first, 1 - first], atol=1e-5 * max(1, abs(first)))


def test_config_of_two_bisects_the_angle():
    for g, h, _, direction in each_pair(weightings.config()):
        bisector = unit(unit(g) + unit(h))
        expected = bisector * ((g + h) @ bisector)
        np.testing.assert_allclose(direction, expected, rtol=1e-4, atol=1e-5)


def test_nash_mtl_of_two_bisects_the_angle_too():
    for g, h, _, direction in each_pair(weightings.nash_mtl()):
        np.testing.assert_allclose(direction, np.sqrt(2) * unit(unit(g) + unit(h)), atol=1e-4)


def test_aligned_mtl_of_two():
    for g, h, _, direction in each_pair(weightings.aligned_mtl()):
        left, singular_values, right = np.linalg.svd(np.stack([g, h]), full_matrices=False)
        expected = singular_values.min() * right.T @ left.T @ [0.5, 0.5]
        np.testing.assert_allclose(direction, expected, atol=1e-5)


def test_aligned_mtl_of_gradients_far_apart():
    rng = np.random.default_rng(0)
    lengths = np.array([1e-3, 1, 1e-5, 1e-8, 0.03])[:, None]
    stack = np.stack([lengths * rng.normal(size=(5, matrices.COLUMNS)) for _ in range(8)])
    stack[0, 1] = 0
    stack[1] = 10 * np.eye(5, matrices.COLUMNS) * lengths
    stack = np.float64(stack.astype(np.float32))
    weights = matrices.weights_of(weightings.aligned_mtl(), stack)
    for rows, w in zip(stack, weights, strict=True):
        left, singular_values, right = np.linalg.svd(rows, full_matrices=False)
        kept = singular_values > 1e-12
        smallest = singular_values[kept].min()
        expected = smallest * right[kept].T @ left[:, kept].T @ np.full(5, 0.2)
        np.testing.assert_allclose(rows.T @ w, expected, atol=1e-4 * np.linalg.norm(expected))


@pytest.mark.parametrize("factor", [1.5e-3, 1e-3, 1e-6, 1e-12, 1e-18])
def test_aligned_mtl_does_not_jump_where_a_gradient_is_short(factor):
    rows = np.array([[1, 0, 0], [0, factor, 0]], np.float32)
    direction = matrices.direction_of(weightings.aligned_mtl(), rows)
    np.testing.assert_allclose(direction, [factor / 2, factor / 2, 0], rtol=1e-5)


def test_aligned_mtl_of_dependent_gradients():
    """One singular value is left out for each dependency, at all lengths."""
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(2, matrices.COLUMNS))
    stack = [[first, second, 2 * first], [first, 1e-3 * second, first - second], [first] * 3]
    stack = np.array(stack, np.float32)
    for rows, w in zip(stack, matrices.weights_of(weightings.aligned_mtl(), stack), strict=True):
        left, singular_values, right = np.linalg.svd(np.float64(rows), full_matrices=False)
        kept = singular_values > 1e-5 * singular_values[0]
        smallest = singular_values[kept].min()
        expected = smallest * right[kept].T @ left[:, kept].T @ np.full(3, 1 / 3)
        np.testing.assert_allclose(rows.T @ w, expected, atol=1e-3 * np.linalg.norm(expected))


def test_cagrad_of_two():
    c = 0.4
    for g, h, _, direction in each_pair(weightings.cagrad(c)):
        mean = (g + h) / 2
        radius = c * np.linalg.norm(mean)

        def dual(share, g=g, h=h, mean=mean, radius=radius):
            mixed = share * g + (1 - share) * h
            return mixed @ mean + radius * np.linalg.norm(mixed)

        share = optimize.minimize_scalar(dual, bounds=(0, 1), options={"xatol": 1e-12}).x
        mixed = share * g + (1 - share) * h
        expected = mean + radius * unit(mixed)
        np.testing.assert_allclose(direction, expected, atol=1e-4 * np.linalg.norm(expected))


# Convex problems against SciPy, on the float64 gradients.

sizes = pytest.mark.parametrize("num_tasks", [3, 16])
CONVEX = ("typical", "aligned", "rows of two scales", "duplicates", "orthogonal", "low rank")


def convex_zoo(num_tasks):
    return [matrices.zoo(num_tasks)[kind] for kind in CONVEX]


def shortest_in_hull(rows):
    """By non-negative least squares: the constraint as one more equation."""
    with_ones = np.vstack([rows.T, np.ones(len(rows))])
    x, _ = optimize.nnls(with_ones, np.append(np.zeros(rows.shape[1]), 1.0), maxiter=1000)
    return rows.T @ x / x.sum()


def project_onto_dual_cone(rows, vector):
    x, _ = optimize.nnls(rows.T, -vector, maxiter=1000)
    return vector + rows.T @ x


def assert_near(direction, expected, rows, relative=1e-4):
    # Where the solution is near zero, relative to what it is made of.
    size = max(np.linalg.norm(expected), 0.01 * np.linalg.norm(rows, axis=1).max())
    assert np.linalg.norm(direction - expected) <= relative * size


@sizes
def test_mgda_against_nnls(num_tasks):
    stack = convex_zoo(num_tasks)
    weights = matrices.weights_of(weightings.mgda(), stack)
    for rows, w in zip(np.float64(stack), weights, strict=True):
        assert_near(rows.T @ w, shortest_in_hull(rows), rows)
        np.testing.assert_allclose(w.sum(), 1, rtol=1e-6)


@sizes
def test_upgrad_and_dualproj_against_nnls(num_tasks):
    stack = convex_zoo(num_tasks)
    upgrad = matrices.weights_of(weightings.upgrad(), stack)
    dualproj = matrices.weights_of(weightings.dualproj(), stack)
    for rows, w_up, w_dual in zip(np.float64(stack), upgrad, dualproj, strict=True):
        projections = [project_onto_dual_cone(rows, row) for row in rows]
        assert_near(rows.T @ w_up, np.mean(projections, axis=0), rows)
        assert_near(rows.T @ w_dual, project_onto_dual_cone(rows, rows.mean(axis=0)), rows)


@sizes
@pytest.mark.parametrize("c", [0.2, 0.8])
def test_cagrad_closes_the_duality_gap(num_tasks, c):
    stack = convex_zoo(num_tasks)
    weights = matrices.weights_of(weightings.cagrad(c), stack)
    for rows, w in zip(np.float64(stack), weights, strict=True):
        direction, mean = rows.T @ w, rows.mean(axis=0)
        radius = c * np.linalg.norm(mean)
        np.testing.assert_allclose(np.linalg.norm(direction - mean), radius, rtol=1e-5)
        # The weights of the simplex: those beyond the mean. Any such are an upper bound.
        mixed = rows.T @ ((w - 1 / num_tasks) / (w - 1 / num_tasks).sum())
        upper = mixed @ mean + radius * np.linalg.norm(mixed)
        worst_case = (rows @ direction).min()
        # The cosines are known to rounding, and with them what the direction is summed from. Where
        # the gradients all but cancel, that is far more than its own length.
        norms = np.linalg.norm(rows, axis=1)
        assert upper - worst_case <= 1e-6 * norms.max() * (np.abs(w) @ norms)


@pytest.mark.parametrize(
    ("c", "rows"),
    [
        (0.5, [[8, 6], [0, 1], [-7, -1], [-4, -3]]),
        (0.9, [[-7, -8], [7, 8], [-1, 0]]),
        (0.4, [[-7, 7], [6, -6], [0, 2], [4, -1]]),
    ],
)
def test_cagrad_where_gradients_cancel(c, rows):
    rows = np.array(rows, float)
    direction = matrices.direction_of(weightings.cagrad(c), rows.astype(np.float32))
    mean = rows.mean(axis=0)
    radius = c * np.linalg.norm(mean)
    angles = np.linspace(0, 2 * np.pi, 2000)
    circle = radius * np.stack([np.cos(angles), np.sin(angles)])
    within = mean[:, None, None] + circle[:, :, None] * np.linspace(0, 1, 50)
    assert np.linalg.norm(direction - mean) <= radius * (1 + 1e-3)
    best = np.tensordot(rows, within, 1).min(axis=0).max()
    assert (rows @ direction).min() >= best - 1e-3 * np.linalg.norm(rows, axis=1).max() * radius


@sizes
@pytest.mark.parametrize("alpha", [0.5, 1, 2, 5])
def test_fairgrad_solves_its_equation(num_tasks, alpha):
    stack = np.float64(list(matrices.well_conditioned(num_tasks).values()))
    weighting = weightings.nash_mtl() if alpha == 1 else weightings.fairgrad(alpha)
    weights = matrices.weights_of(weighting, stack)
    decreases = np.einsum("nkp,nlp,nl->nk", stack, stack, weights)
    np.testing.assert_allclose(decreases, weights ** (-1 / alpha), rtol=2e-4)


@pytest.mark.parametrize(("alpha", "apart"), [(0.5, 1e6), (1, 1e6), (2, 1e6), (10, 1e3)])
def test_fairgrad_of_gradients_far_apart(alpha, apart):
    rng = np.random.default_rng(0)
    norms = apart ** rng.uniform(-1, 0, (16, 3, 1))
    stack = (norms * rng.normal(size=(16, 3, 20))).astype(np.float32)
    weights = matrices.weights_of(weightings.fairgrad(alpha), stack)
    stack = np.float64(stack)
    decreases = np.einsum("nkp,nlp,nl->nk", stack, stack, weights)
    np.testing.assert_allclose(decreases * weights ** (1 / alpha), 1, atol=0.02)


def test_the_length_of_fairgrad_follows_the_scale_of_the_gradients():
    rows = matrices.zoo(5)["typical"]
    near, far = matrices.weights_of(weightings.fairgrad(2.0), [rows, rows * 1e12])
    np.testing.assert_allclose(far, near * (1e-24) ** (2 / 3), rtol=1e-4)


@pytest.mark.parametrize("num_tasks", [3, 16, 64])
def test_solver_is_exact_to_the_rounding_in_float64(num_tasks):
    with jax.enable_x64(True):
        solve = jax.jit(_solvers.nonnegative_qp)
        for rows in matrices.zoo(num_tasks).values():
            lengths = np.linalg.norm(np.float64(rows), axis=1, keepdims=True)
            if not lengths.all():
                continue
            rows = np.float64(rows) / lengths
            x = np.asarray(solve(jnp.asarray(rows @ rows.T), jnp.asarray(rows @ rows[0])))
            expected = project_onto_dual_cone(rows, rows[0])
            np.testing.assert_allclose(rows[0] + rows.T @ x, expected, atol=1e-6)


def test_solver_meets_the_conditions_where_gradients_are_nearly_opposed():
    rng = np.random.default_rng(36)
    rows = rng.normal(size=(300, 1, 20)) * rng.choice([-1, 1], size=(300, 16, 1))
    rows += 10 ** rng.uniform(-4, -1, size=(300, 1, 1)) * rng.normal(size=(300, 16, 20))
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    cosines = (rows @ rows.transpose(0, 2, 1)).astype(np.float32)
    of_all = jax.vmap(jax.vmap(_solvers.nonnegative_qp, in_axes=(None, 0)))
    added = np.asarray(jax.jit(of_all)(cosines, cosines), np.float64)
    # Non-negative, no loss increases, one of the two is zero: to rounding, in nine of ten cases.
    slopes = (added + np.eye(16)) @ np.float64(cosines)
    assert (added > 0).all()
    assert np.quantile(slopes.min(axis=(1, 2)), 0.1) > -1e-6
    assert np.quantile(np.abs(added * slopes).max(axis=(1, 2)), 0.9) < 4e-6


# Definitions.


def test_gradvac_reaches_the_target_cosine():
    weighting = weightings.gradvac(2, beta=0.5)
    rows = np.array([[3.0, 0.0], [-1.0, 2.0]], np.float32)
    gramian = jnp.asarray(rows @ rows.T)
    targets = jnp.array([[0.0, 0.6], [0.6, 0.0]])
    weights, next_targets = weighting.weigh(gramian, targets)
    cosine = gramian[0, 1] / jnp.sqrt(gramian[0, 0] * gramian[1, 1])
    np.testing.assert_allclose(next_targets[0, 1], (0.6 + cosine) / 2, rtol=1e-6)
    # The changed gradients, from the definition: g + a h with a cosine of 0.6 with h.
    expected = np.zeros(2)
    for g, h in (rows, rows[::-1]):
        wanted = optimize.brentq(lambda a, g=g, h=h: unit(g + a * h) @ unit(h) - 0.6, 0, 50)
        expected += g + wanted * h
    np.testing.assert_allclose(rows.T @ weights, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("weighting", "scalarization"),
    [
        (weightings.gls(), lambda losses: jnp.prod(losses) ** (1 / len(losses))),
        (
            weightings.stch(0.3),
            lambda losses: 0.3 * jax.nn.logsumexp(losses / len(losses) / 0.3),
        ),
    ],
    ids=["gls", "stch"],
)
def test_scalarizations_are_gradients(weighting, scalarization):
    losses = matrices.losses(4)
    weights, _ = weighting.weigh(jnp.eye(4), (), losses=losses, key=None)
    np.testing.assert_allclose(weights, jax.grad(scalarization)(losses), rtol=1e-5)


def run(weighting, losses, gramian=None):
    """Weights of each step for a sequence of losses, `[steps, K]`."""
    losses = jnp.asarray(losses)
    gramian = jnp.eye(losses.shape[1]) if gramian is None else gramian

    def step(state, losses):
        weights, state = weighting.weigh(gramian, state, losses=losses)
        return state, weights

    return np.asarray(jax.lax.scan(step, weighting.init(), losses)[1])


def test_dwa_follows_the_rates_of_the_mean_losses():
    losses = np.array([[4.0, 1.0], [2.0, 3.0], [1.0, 1.0], [2.0, 1.0], [7.0, 7.0]])
    weights = run(weightings.dwa(2, temperature=2.0, period=2), losses)
    np.testing.assert_allclose(weights[:4], 1)
    rates = np.array([1.5 / 3, 1 / 2])
    np.testing.assert_allclose(weights[4], 2 * np.exp(rates / 2) / np.exp(rates / 2).sum())


def test_uncertainty_learns_the_losses_as_variances():
    losses = np.tile([0.5, 2.0], (1000, 1))
    weights = run(weightings.uncertainty(2), losses)
    np.testing.assert_allclose(weights[0], 0.5)
    np.testing.assert_allclose(weights[-1], 0.5 / losses[0], rtol=0.02)


def test_gradnorm_equalises_the_norms_of_tasks_in_step():
    gramian = jnp.diag(jnp.array([1.0, 16.0]))
    weights = run(weightings.gradnorm(2), np.ones((400, 2)), gramian)
    np.testing.assert_allclose(weights[0], 1)
    np.testing.assert_allclose(weights[-1] * [1, 4], weights[-1, 0], rtol=0.1)
    np.testing.assert_allclose(weights.sum(axis=1), 2, rtol=1e-5)


def test_gradnorm_favours_the_task_that_trains_slowly():
    losses = np.stack([np.linspace(1, 0.2, 50), np.ones(50)], axis=1)
    weights = run(weightings.gradnorm(2), losses)
    assert weights[-1, 1] > 1.2 > 0.9 > weights[-1, 0]


def test_famo_favours_the_loss_that_falls_slowly():
    losses = np.stack([np.geomspace(1, 0.1, 100), np.ones(100)], axis=1)
    weights = run(weightings.famo(2), losses)
    np.testing.assert_allclose(weights[0], 0.5)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    share = weights * losses / (weights * losses).sum(axis=1, keepdims=True)
    assert share[-1, 1] > 0.8


def test_random_weights_are_a_softmax_of_normal_numbers():
    keys = jax.random.split(jax.random.key(0), 2000)
    weigh = jax.vmap(lambda key: weightings.random().weigh(jnp.eye(3), (), key=key)[0])
    weights = np.asarray(weigh(keys), np.float64)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)
    ratios = np.log(weights[:, 0] / weights[:, 1])
    np.testing.assert_allclose([ratios.mean(), ratios.std()], [0, np.sqrt(2)], atol=0.1)


def test_gradient_equilibrium_is_the_mean_over_the_tasks_present():
    weights = matrices.weights_of(weightings.gradient_equilibrium(), [np.eye(3, 4)[[0, 1, 2, 0]]])
    np.testing.assert_allclose(weights[0], 0.25)
    rows = np.array([[0, 0], [1, 2], [2, -1.0]], np.float32)
    np.testing.assert_allclose(
        matrices.direction_of(weightings.gradient_equilibrium(), rows), [1.5, 0.5], rtol=1e-6
    )
