"""Five problems: what each loss asks of a field, where, and what the solution is.

The solutions of Burgers, Helmholtz, Klein-Gordon and advection are exact; that of Allen-Cahn is
computed by a spectral method. Points are (t, x), of Helmholtz (x, y).
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pinn import solutions
from experiments.pinn.derivatives import Field, curvature, slope

Name = Literal["burgers", "helmholtz", "klein_gordon", "allen_cahn", "advection"]
Sampling = Literal["uniform", "latin_hypercube"]


@dataclasses.dataclass(frozen=True)
class Term:
    """A loss: the mean of the squares of a residual.

    Attributes:
      residual: from a field and points `[N, 2]` to what should be zero there, `[N]` or `[N, M]`.
      faces: where the points are: on these (coordinate, value) in turn, anywhere if there are none.
    """

    residual: Callable[[Field, jax.Array], jax.Array]
    faces: tuple[tuple[int, float], ...] = ()


@dataclasses.dataclass(frozen=True)
class Problem:
    """A partial differential equation on a rectangle, with what makes its solution the only one.

    Attributes:
      coordinates: their names.
      low: least values of the coordinates.
      high: largest values.
      terms: the losses: `pde`, `bc` (boundary) and, over time, `ic` (initial state).
      exact: the solution; None where there is but a reference.
      reference: the solution on a grid, from the values of both coordinates.
    """

    coordinates: tuple[str, str]
    low: tuple[float, float]
    high: tuple[float, float]
    terms: Mapping[str, Term]
    exact: Field | None = None
    reference: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None

    def sample(
        self, key: jax.Array, interior: int, boundary: int, sampling: Sampling = "latin_hypercube"
    ) -> dict[str, jax.Array]:
        """Draw points for each loss: so many for the equation, so many for each condition.

        Latin hypercubes: McKay, Beckman and Conover, "A Comparison of Three Methods for Selecting
        Values of Input Variables in the Analysis of Output from a Computer Code", 1979.
        """
        draw = _latin_hypercube if sampling == "latin_hypercube" else jax.random.uniform
        points = {}
        for name, term in sorted(self.terms.items()):
            key, drawn = jax.random.split(key)
            number = boundary if term.faces else interior
            low, high = jnp.array(self.low), jnp.array(self.high)
            each = low + (high - low) * draw(drawn, (number, 2))
            for turn, (axis, value) in enumerate(term.faces):
                each = each.at[turn :: len(term.faces), axis].set(value)
            points[name] = each
        return points

    def losses(self, field: Field, points: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The loss of each term."""
        return {
            name: jnp.mean(term.residual(field, points[name]) ** 2)
            for name, term in self.terms.items()
        }

    def grid(self, sizes: tuple[int, int] = (101, 201)) -> tuple[np.ndarray, ...]:
        """Values of each coordinate, equally spaced with both ends."""
        return tuple(map(np.linspace, self.low, self.high, sizes))

    def solution(self, sizes: tuple[int, int] = (101, 201)) -> np.ndarray:
        """The solution on the grid, in float64, of this shape."""
        first, second = self.grid(sizes)
        if self.reference is not None:
            return self.reference(first, second)
        assert self.exact is not None
        with jax.enable_x64(True):
            exact = jax.jit(self.exact)
            rows = [exact(jnp.asarray(row)) for row in mesh(first, second)]
            return np.stack(jax.device_get(rows))


def _latin_hypercube(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """N points in the unit square; each N-th of each axis has one of them."""
    shuffled, inside = jax.random.split(key)
    # The order of the points says nothing, so one axis need not be shuffled; sorting takes long.
    places = [jnp.arange(shape[0]), jax.random.permutation(shuffled, shape[0])]
    return (jnp.stack(places, axis=1) + jax.random.uniform(inside, shape)) / shape[0]


def mesh(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The points of a grid, `[*sizes, 2]`."""
    return np.stack(np.meshgrid(first, second, indexing="ij"), axis=-1)


def _is(wanted: Field) -> Callable[[Field, jax.Array], jax.Array]:
    """The residual of a field that should have these values."""
    return lambda field, points: field(points) - wanted(points)


def _periodic(period: float, *, slopes: bool) -> Callable[[Field, jax.Array], jax.Array]:
    """The residual of a field that should be the same a period further along x."""

    def residual(field: Field, points: jax.Array) -> jax.Array:
        shifted = points.at[:, 1].add(period)
        if not slopes:
            return field(points) - field(shifted)
        here, there = slope(field, points, 1), slope(field, shifted, 1)
        return jnp.stack(here, axis=1) - jnp.stack(there, axis=1)

    return residual


def _burgers() -> Problem:
    viscosity = 0.01 / np.pi

    def pde(field: Field, points: jax.Array) -> jax.Array:
        _, u_t = slope(field, points, 0)
        u, u_x, u_xx = curvature(field, points, 1)
        return u_t + u * u_x - viscosity * u_xx

    terms = {
        "pde": Term(pde),
        "bc": Term(_is(lambda points: jnp.zeros(len(points))), ((1, -1.0), (1, 1.0))),
        "ic": Term(_is(lambda points: -jnp.sin(jnp.pi * points[:, 1])), ((0, 0.0),)),
    }
    exact = lambda points: solutions.cole_hopf(points, viscosity)  # noqa: E731
    return Problem(("t", "x"), (0.0, -1.0), (1.0, 1.0), terms, exact)


def _helmholtz() -> Problem:
    def exact(points: jax.Array) -> jax.Array:
        return jnp.sin(jnp.pi * points[:, 0]) * jnp.sin(4 * jnp.pi * points[:, 1])

    def pde(field: Field, points: jax.Array) -> jax.Array:
        u, _, u_xx = curvature(field, points, 0)
        _, _, u_yy = curvature(field, points, 1)
        return u_xx + u_yy + u - (1 - 17 * jnp.pi**2) * exact(points)

    edges = tuple((axis, side) for axis in (0, 1) for side in (-1.0, 1.0))
    terms = {"pde": Term(pde), "bc": Term(_is(exact), edges)}
    return Problem(("x", "y"), (-1.0, -1.0), (1.0, 1.0), terms, exact)


def _klein_gordon() -> Problem:
    def exact(points: jax.Array) -> jax.Array:
        t, x = points.T
        return x * jnp.cos(5 * jnp.pi * t) + (x * t) ** 3

    def pde(field: Field, points: jax.Array) -> jax.Array:
        t, x = points.T
        u, _, u_tt = curvature(field, points, 0)
        _, _, u_xx = curvature(field, points, 1)
        accelerated = -25 * jnp.pi**2 * x * jnp.cos(5 * jnp.pi * t) + 6 * x**3 * t
        return u_tt - u_xx + u**3 - (accelerated - 6 * x * t**3 + exact(points) ** 3)

    def start(field: Field, points: jax.Array) -> jax.Array:
        u, u_t = slope(field, points, 0)
        return jnp.stack([u - points[:, 1], u_t], axis=1)

    terms = {
        "pde": Term(pde),
        "bc": Term(_is(exact), ((1, 0.0), (1, 1.0))),
        "ic": Term(start, ((0, 0.0),)),
    }
    return Problem(("t", "x"), (0.0, 0.0), (1.0, 1.0), terms, exact)


def _allen_cahn() -> Problem:
    def start(points: jax.Array) -> jax.Array:
        return points[:, 1] ** 2 * jnp.cos(jnp.pi * points[:, 1])

    def pde(field: Field, points: jax.Array) -> jax.Array:
        _, u_t = slope(field, points, 0)
        u, _, u_xx = curvature(field, points, 1)
        return u_t - 1e-4 * u_xx + 5 * u**3 - 5 * u

    terms = {
        "pde": Term(pde),
        "bc": Term(_periodic(2.0, slopes=True), ((1, -1.0),)),
        "ic": Term(_is(start), ((0, 0.0),)),
    }
    reference = solutions.allen_cahn
    return Problem(("t", "x"), (0.0, -1.0), (1.0, 1.0), terms, reference=reference)


def _advection(speed: float = 30.0) -> Problem:
    def exact(points: jax.Array) -> jax.Array:
        return jnp.sin(points[:, 1] - speed * points[:, 0])

    def pde(field: Field, points: jax.Array) -> jax.Array:
        return slope(field, points, 0)[1] + speed * slope(field, points, 1)[1]

    terms = {
        "pde": Term(pde),
        "bc": Term(_periodic(2 * np.pi, slopes=False), ((1, 0.0),)),
        "ic": Term(_is(exact), ((0, 0.0),)),
    }
    return Problem(("t", "x"), (0.0, 0.0), (1.0, 2 * np.pi), terms, exact)


PROBLEMS: Mapping[Name, Problem] = MappingProxyType(
    {
        "burgers": _burgers(),
        "helmholtz": _helmholtz(),
        "klein_gordon": _klein_gordon(),
        "allen_cahn": _allen_cahn(),
        "advection": _advection(),
    }
)
