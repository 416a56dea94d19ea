"""The residuals are those of the equations, and the solutions solve them."""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.pinn import solutions
from experiments.pinn.derivatives import slope
from experiments.pinn.problems import PROBLEMS, Sampling, mesh
from experiments.pinn.training import Net, SolverSettings

_EXACT = [name for name, problem in PROBLEMS.items() if problem.exact is not None]


@pytest.mark.parametrize("name", _EXACT)
def test_exact_solutions_leave_no_residual(name, x64):
    problem = PROBLEMS[name]
    points = problem.sample(jax.random.key(0), 200, 40)
    for term, each in points.items():
        residual = problem.terms[term].residual(problem.exact, each)
        np.testing.assert_allclose(residual, 0, atol=1e-10, err_msg=term)


# Left sides less right ones, where `d(i, j)` is the derivative i times along the first and j times
# along the second coordinate.
_EQUATIONS = {
    "burgers": lambda d, t, x: d(1, 0) + d(0, 0) * d(0, 1) - 0.01 / np.pi * d(0, 2),
    "helmholtz": lambda d, x, y: (
        d(2, 0)
        + d(0, 2)
        + d(0, 0)
        - (1 - 17 * np.pi**2) * np.sin(np.pi * x) * np.sin(4 * np.pi * y)
    ),
    "klein_gordon": lambda d, t, x: (
        d(2, 0)
        - d(0, 2)
        + d(0, 0) ** 3
        - (-25 * np.pi**2 * x * np.cos(5 * np.pi * t) + 6 * t * x**3 - 6 * x * t**3)
        - (x * np.cos(5 * np.pi * t) + x**3 * t**3) ** 3
    ),
    "allen_cahn": lambda d, t, x: d(1, 0) - 1e-4 * d(0, 2) + 5 * d(0, 0) ** 3 - 5 * d(0, 0),
    "advection": lambda d, t, x: d(1, 0) + 30 * d(0, 1),
}


def _differences(function, points, step=1e-3):
    """Derivatives by central differences of the sixth order, in NumPy."""
    first = {1: 3 / 4, 2: -3 / 20, 3: 1 / 60}

    def derivative(*orders):
        (axis,) = [i for i, order in enumerate(orders) if order] or [0]
        along = step * np.eye(2)[axis]
        if orders[axis] == 0:
            return function(points)
        if orders[axis] == 1:
            pairs = [
                (c, function(points + k * along), function(points - k * along))
                for k, c in first.items()
            ]
            return sum(c * (ahead - behind) for c, ahead, behind in pairs) / step
        second = {1: 3 / 2, 2: -3 / 20, 3: 1 / 90}
        pairs = [
            (c, function(points + k * along) + function(points - k * along))
            for k, c in second.items()
        ]
        return (sum(c * both for c, both in pairs) - 49 / 18 * function(points)) / step**2

    return derivative


@pytest.mark.parametrize("name", PROBLEMS)
def test_residuals_of_a_net_are_the_equations_in_finite_differences(name, x64):
    problem = PROBLEMS[name]
    net = nnx.view(Net(problem, SolverSettings(width=8, layers=2), nnx.Rngs(0)))
    graphdef, state = nnx.split(net)
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf, float) * 1.5, state)
    net = nnx.merge(graphdef, state)
    points = np.asarray(problem.sample(jax.random.key(1), 50, 4)["pde"])
    derivative = _differences(lambda each: np.asarray(net(jnp.asarray(each))), points)
    wanted = _EQUATIONS[name](derivative, *points.T)
    found = problem.terms["pde"].residual(net, jnp.asarray(points))
    np.testing.assert_allclose(found, wanted, rtol=1e-7, atol=1e-7)


def _wave(points):
    return jnp.sin(2 * points[:, 0] + 3 * points[:, 1])


@pytest.mark.parametrize(
    ("name", "term", "wanted"),
    [
        ("burgers", "bc", lambda t, x: np.sin(2 * t + 3 * x)),
        ("burgers", "ic", lambda t, x: np.sin(3 * x) + np.sin(np.pi * x)),
        ("allen_cahn", "ic", lambda t, x: np.sin(3 * x) - x**2 * np.cos(np.pi * x)),
        (
            "allen_cahn",
            "bc",
            lambda t, x: np.stack(
                [
                    np.sin(2 * t - 3) - np.sin(2 * t + 3),
                    3 * np.cos(2 * t - 3) - 3 * np.cos(2 * t + 3),
                ],
                axis=1,
            ),
        ),
        (
            "klein_gordon",
            "ic",
            lambda t, x: np.stack([np.sin(3 * x) - x, 2 * np.cos(3 * x)], axis=1),
        ),
    ],
)
def test_conditions_are_what_they_say(name, term, wanted, x64):
    problem = PROBLEMS[name]
    points = problem.sample(jax.random.key(2), 1, 10)[term]
    found = problem.terms[term].residual(_wave, points)
    np.testing.assert_allclose(found, wanted(*np.asarray(points).T), atol=1e-12)


@pytest.mark.parametrize("sampling", get_args(Sampling))
@pytest.mark.parametrize("name", PROBLEMS)
def test_points_lie_where_their_loss_is(name, sampling):
    problem = PROBLEMS[name]
    for term, points in problem.sample(jax.random.key(0), 64, 8, sampling).items():
        points, faces = np.asarray(points), problem.terms[term].faces
        assert len(points) == (8 if faces else 64)
        assert (points >= problem.low).all()
        assert (points <= np.array(problem.high) * (1 + 1e-6)).all()
        on = [np.isclose(points[:, axis], value) for axis, value in faces]
        assert sum(map(np.sum, on)) == (8 if faces else 0)
        assert all(each.sum() == 8 // len(faces) for each in on)


def test_a_latin_hypercube_has_a_point_in_each_part_of_each_coordinate():
    problem = PROBLEMS["burgers"]
    orders = []
    for seed in range(2):
        points = problem.sample(jax.random.key(seed), 100, 4, "latin_hypercube")["pde"]
        low, high = np.array(problem.low), np.array(problem.high)
        parts = np.floor((points - low) / (high - low) * 100).astype(int)
        np.testing.assert_array_equal(np.sort(parts, axis=0), np.arange(100)[:, None].repeat(2, 1))
        orders.append(parts[np.argsort(parts[:, 0]), 1])
    # What one coordinate is does not tell the other, nor does one draw the next.
    matches = [np.mean(one == other) for one, other in ((orders[0], range(100)), orders)]
    assert max(matches) < 0.1


def test_allen_cahn_converges_in_space_and_time():
    times, places = np.linspace(0, 1, 11), np.linspace(-1, 1, 101)

    def error(one, other):
        return np.linalg.norm(one - other) / np.linalg.norm(other)

    fine = solutions.allen_cahn(times, places, 2048, 1e-3)
    in_space = [
        error(solutions.allen_cahn(times, places, modes, 1e-3), fine) for modes in (256, 512, 1024)
    ]
    assert in_space[2] < 2e-5
    assert in_space[2] < in_space[1] / 3 < in_space[0] / 9
    same = solutions.allen_cahn(times, places, 256, 1e-3)
    in_time = [error(solutions.allen_cahn(times, places, 256, step), same) for step in (1e-1, 5e-2)]
    assert in_time[1] < in_time[0] / 8  # of the fourth order


def test_allen_cahn_solves_its_equation():
    """Differences in NumPy, away from the beginning, where its data have a kink."""
    t, x = np.linspace(0, 1, 1001), np.linspace(-1, 1, 2001)
    u = solutions.allen_cahn(t, x)[500:505]
    u_t = (u[0] - 8 * u[1] + 8 * u[3] - u[4]) / 12e-3
    u = u[2]
    u_xx = (
        -np.roll(u[:-1], 2)
        + 16 * np.roll(u[:-1], 1)
        - 30 * u[:-1]
        + 16 * np.roll(u[:-1], -1)
        - np.roll(u[:-1], -2)
    ) / 12e-6
    residual = u_t[:-1] - 1e-4 * u_xx - 5 * u[:-1] + 5 * u[:-1] ** 3
    assert np.abs(u_t).max() > 1
    np.testing.assert_allclose(residual, 0, atol=2e-4)


def test_the_grid_holds_the_solution():
    problem = PROBLEMS["klein_gordon"]
    t, x = problem.grid((3, 5))
    u = x * np.cos(5 * np.pi * t[:, None]) + (t[:, None] * x) ** 3
    np.testing.assert_allclose(problem.solution((3, 5)), u, atol=1e-12)
    assert mesh(t, x)[2, 4].tolist() == [1, 1]


def test_burgers_shock_has_the_published_slope(x64):
    """Basdevant et al. 1986: steepest at the origin at t = 1.6037 / pi, where it is -152.00516."""
    points = jnp.array([[1.6037 / np.pi, 0.0]])
    _, slope_at_origin = slope(PROBLEMS["burgers"].exact, points, 1)
    np.testing.assert_allclose(slope_at_origin, -152.00516, atol=1e-4)
