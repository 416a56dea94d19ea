"""The small convex problems behind the weightings, each solved in a bounded number of steps.

All four work on a Gramian of unit gradients (ones on the diagonal), K <= 64 or so, under `jit` and
`vmap`, without a callback or a solver package.

Existing JAX solvers were considered. qpax solves general quadratic programs, with constraints as
separate matrices, and advises tolerances of no less than 1e-5 in float32. jaxopt is no longer
developed. optimistix has no inequalities. mpax is for large linear and quadratic programs, by
first-order steps that need thousands of iterations for six digits. Three of the problems have no
constraint but a sign, for which an interior-point method takes forty lines; the fourth is for an
active-set method, because its multipliers must stay small.

Derivatives are those of the conditions that the solution meets, not of the steps towards it: exact
where the solution is smooth, finite everywhere. Every solver is compiled separately, so that calls
outside of `jit` compile once.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

from osgd_jax._validation import is_traced

# Worst cases of K = 64 with rank-deficient or nearly opposed gradients need 15 and 25.
_QP_STEPS = 20
_SMOOTH_STEPS = 30
# From one exponent to the next on the path of `balanced_point`.
_PATH_RATIO = 1.6


def nonnegative_qp(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """Minimize x' M x / 2 + q' x over x >= 0, for M positive semidefinite of the order of one.

    Mehrotra's predictor-corrector interior-point method. Where the minimizer is not unique, the
    result is the analytic center of all of them, so symmetric tasks get symmetric values.

    Args:
      matrix: M, `[K, K]`.
      linear: q, `[K]`.

    Returns:
      Array `[K]`. For the given M and q, M x is right to about 1e-6 in float32.
    """
    return _qp_point(matrix, linear)[0]


@jax.custom_jvp
@jax.jit
def _qp_point(matrix: jax.Array, linear: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the minimizer x and the gradient z there, both positive."""

    def step(point):
        x, z = point
        gradient = matrix @ x + linear
        solve = _factor(matrix, z / x)
        mean_product = jnp.mean(x * z)

        dx = -solve(gradient)
        dz = -z - z / x * dx
        length = _longest_step(point, (dx, dz), 1.0)
        reached = jnp.mean((x + length * dx) * (z + length * dz))
        target = (reached / mean_product) ** 3 * mean_product

        excess = z + (dx * dz - target) / x
        dx = -solve(gradient - z + excess)
        dz = -excess - z / x * dx
        length = _longest_step(point, (dx, dz), 0.99)
        return _positive(x + length * dx), _positive(z + length * dz)

    ones = jnp.ones_like(linear)
    return _repeated(step, (ones, ones), _QP_STEPS)


@_qp_point.defjvp
def _(primals, tangents):
    (matrix, linear), (d_matrix, d_linear) = primals, tangents
    x, z = _qp_point(matrix, linear)
    # From M x + q = z with x_i z_i constant.
    change = d_matrix @ x + d_linear
    dx = -_factor(matrix, z / x)(change)
    return (x, z), (dx, change + matrix @ dx)


class Convex(Protocol):
    """A smooth convex function of `[K]`: a pytree of what it depends on."""

    def gradient(self, x: jax.Array) -> jax.Array:
        """Return the gradient `[K]`."""
        ...

    def hessian(self, x: jax.Array) -> jax.Array:
        """Return the second derivatives `[K, K]`."""
        ...


def nonnegative_minimum(function: Convex, start: jax.Array) -> jax.Array:
    """Minimize a smooth convex function over x >= 0, by an interior-point method with line search.

    Args:
      function: of `[K]`.
      start: a positive point, `[K]`.

    Returns:
      Array `[K]`.
    """
    return _minimum_point(function, start)[0]


@jax.custom_jvp
@jax.jit
def _minimum_point(function: Convex, start: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the minimizer x and the gradient z there, both positive."""

    def step(point):
        x, z = point
        slope = function.gradient(x)
        solve = _factor(function.hessian(x), z / x)
        mean_product = jnp.mean(x * z)

        dx = -solve(slope)
        dz = -z - z / x * dx
        length = _longest_step(point, (dx, dz), 1.0)
        reached = jnp.mean((x + length * dx) * (z + length * dz))
        target = jnp.maximum((reached / mean_product) ** 3, 0.05) * mean_product

        dx = -solve(slope - target / x)
        dz = target / x - z - z / x * dx
        length = _line_search(
            lambda y: function.gradient(y) - target / y,
            x,
            dx,
            _longest_step(point, (dx, dz), 0.99),
        )
        return _positive(x + length * dx), _positive(z + length * dz)

    return _repeated(step, (start, jnp.ones_like(start)), _SMOOTH_STEPS)


@_minimum_point.defjvp
def _(primals, tangents):
    function, start = primals
    x, z = _minimum_point(function, start)
    _, change = jax.jvp(lambda function: function.gradient(x), primals[:1], tangents[:1])
    hessian = function.hessian(x)
    dx = -_factor(hessian, z / x)(change)
    return (x, z), (dx, change + hessian @ dx)


Point = tuple[jax.Array, jax.Array]


def _repeated(step: Callable[[Point], Point], start: Point, most: int) -> Point:
    """Take at most so many steps, until the products x_i z_i are zero to rounding.

    From there on, rounding errors alone move the point, and can throw it far back. On a GPU the
    runtime waits for the test of each step; what that takes was not measured.
    """

    def goes_on(carry):
        number, (x, z) = carry
        return (number < most) & (jnp.mean(x * z) > jnp.finfo(x.dtype).eps ** 2)

    return lax.while_loop(goes_on, lambda carry: (carry[0] + 1, step(carry[1])), (0, start))[1]


def balanced_point(matrix: jax.Array, targets: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """Solve (M x)_i = c_i x_i^-p for x > 0, with M positive semidefinite with a unit diagonal.

    The solution minimizes x' M x / 2 - sum_i c_i x_i^(1-p) / (1-p), a convex function: Newton's
    method with line search. For p < 1 the path from p = 1, where the method is surest, is followed.
    Where M has a positive vector in its null space there is no solution; a ridge of the size of the
    rounding errors keeps x finite.

    Args:
      matrix: M, `[K, K]`.
      targets: c, `[K]`, positive.
      exponent: p, positive.

    Returns:
      Array `[K]`.
    """
    matrix = matrix + rounding(matrix) * jnp.eye(len(targets), dtype=matrix.dtype)
    # A path for p = 0.01, where p is not known yet: its steps at p = 1 do nothing.
    smallest = 0.01 if is_traced(exponent) else min(1.0, float(exponent))
    path_length = math.ceil(-math.log(smallest) / math.log(_PATH_RATIO) - 1e-9)
    return _balanced(path_length, matrix, targets, jnp.asarray(exponent, matrix.dtype))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _balanced(path_length: int, matrix: jax.Array, targets: jax.Array, exponent: jax.Array):
    steps = jnp.arange(path_length, 0, -1, dtype=matrix.dtype)
    path = jnp.minimum(1, exponent * _PATH_RATIO**steps)
    exponents = jnp.concatenate([jnp.repeat(path, 6), jnp.broadcast_to(exponent, 16)])

    def step(i, x):
        p = exponents[i]
        residual = matrix @ x - targets * x**-p
        dx = -_factor(matrix, p * targets * x ** (-p - 1))(residual)
        length = _line_search(
            lambda y: matrix @ y - targets * y**-p, x, dx, _longest_step((x,), (dx,), 0.95)
        )
        return _positive(x + length * dx)

    # The solution for orthogonal gradients.
    start = targets ** (1 / (1 + exponents[0]))
    return lax.fori_loop(0, len(exponents), step, start)


@_balanced.defjvp
def _(path_length, primals, tangents):
    (matrix, targets, p), (d_matrix, d_targets, d_p) = primals, tangents
    x = _balanced(path_length, matrix, targets, p)
    change = d_matrix @ x - x**-p * (d_targets - targets * jnp.log(x) * d_p)
    return x, -_factor(matrix, p * targets * x ** (-p - 1))(change)


class _Search(NamedTuple):
    """Where `shortest_combination` stands: constraint `entering` is violated if `going`."""

    x: jax.Array
    active: jax.Array
    entering: jax.Array
    going: jax.Array
    possible: jax.Array
    steps: jax.Array


@jax.custom_jvp
def shortest_combination(cosines: jax.Array, missing: jax.Array) -> jax.Array:
    """Find the x >= 0 whose sum_j x_j u_j is the shortest c with <u_j, c> >= missing_j for all j.

    The u_j are unit vectors, given by their cosines. Where there is no such c, x is zero.

    The dual active-set method of Goldfarb and Idnani, Mathematical Programming 27, 1983. The
    constraint that is violated most enters. Its multiplier grows until it holds, and multipliers
    that become zero on the way leave. No vector enters that depends on those inside, so the x stay
    small where `nonnegative_qp` lets them grow without bound.
    """
    return _goldfarb_idnani(cosines, missing)


@shortest_combination.defjvp
def _(primals, tangents):
    (cosines, missing), (d_cosines, d_missing) = primals, tangents
    x = _goldfarb_idnani(cosines, missing)
    # The constraints with a multiplier go on to hold with equality.
    held = x > 0
    inside = jnp.where(held[:, None] & held[None], cosines, jnp.eye(len(x), dtype=x.dtype))
    change = jnp.where(held, d_missing, 0) - jnp.where(held, d_cosines @ x, 0)
    return x, jnp.linalg.solve(inside, change)


@jax.jit
def _goldfarb_idnani(cosines: jax.Array, missing: jax.Array) -> jax.Array:
    tasks = jnp.arange(len(missing))
    tolerance = 4 * rounding(cosines)

    def most_violated(x, active):
        slack = jnp.where(active, 0, cosines @ x - missing)
        entering = jnp.argmin(slack)
        return entering, slack[entering] < -tolerance * (1 + jnp.sum(x) / 8)

    def step(search: _Search) -> _Search:
        x, active, entering, *_ = search
        column = cosines[entering]
        both = active[:, None] & active[None]
        inside = jnp.where(both, cosines, jnp.eye(len(x), dtype=x.dtype))
        parts = jnp.where(active, jnp.linalg.solve(inside, jnp.where(active, column, 0)), 0)
        rest = 1 - column @ parts

        shrinking = active & (parts > tolerance)
        until_zero = jnp.where(shrinking, x / jnp.where(shrinking, parts, 1), jnp.inf)
        leaving = jnp.argmin(until_zero)
        until_held = jnp.where(
            rest > tolerance,
            (missing[entering] - column @ x) / jnp.where(rest > tolerance, rest, 1),
            jnp.inf,
        )
        length = jnp.minimum(until_zero[leaving], until_held)
        possible = jnp.isfinite(length)
        length = jnp.where(possible, length, 0)
        enters = until_held <= until_zero[leaving]

        leaves = (tasks == leaving) & ~enters
        x = jnp.maximum(x - length * parts, 0) + jnp.where(tasks == entering, length, 0)
        x = jnp.where(leaves, 0, x)
        # Beyond, what holds and what does not is lost in the rounding.
        possible &= jnp.sum(x) < 0.1 / tolerance
        active = (active & ~leaves) | ((tasks == entering) & enters)
        following, violated = most_violated(x, active)
        return _Search(
            x,
            active,
            jnp.where(enters, following, entering),
            possible & (violated | ~enters),
            possible,
            search.steps + 1,
        )

    def goes_on(search: _Search) -> jax.Array:
        # Rounding could make a constraint enter and leave for ever.
        return search.going & (search.steps < 10 * len(missing))

    x, active = jnp.zeros_like(missing), jnp.zeros_like(missing, bool)
    start = _Search(x, active, *most_violated(x, active), jnp.array(True), jnp.array(0))
    end = lax.while_loop(goes_on, step, start)
    return jnp.where(end.possible & ~end.going, end.x, 0)


def _factor(matrix: jax.Array, diagonal: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Return the solver for (matrix + diag(diagonal)) x = b."""
    # The ridge is in the factor only, not in the residuals that the steps bring to zero, so it
    # slows the last digits of the least certain directions but does not move the solution.
    ridge = rounding(matrix) * jnp.maximum(1, jnp.max(matrix))
    lower = jnp.linalg.cholesky(matrix + jnp.diag(diagonal + ridge))
    return lambda b: cho_solve((lower, True), b)


def rounding(matrix: jax.Array) -> float:
    """Return a bound on the rounding errors of sums over the K tasks of numbers of order one."""
    return 2 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)


def _longest_step(point, direction, fraction: float) -> jax.Array:
    """Return the step, at most 1, that leaves `1 - fraction` of the way to the boundary."""
    lengths = [
        jnp.where(d < 0, -x / jnp.where(d < 0, d, -1), jnp.inf)
        for x, d in zip(point, direction, strict=True)
    ]
    return jnp.minimum(1, fraction * jnp.min(functools.reduce(jnp.minimum, lengths)))


def _line_search(gradient, x: jax.Array, dx: jax.Array, longest: jax.Array) -> jax.Array:
    """Return the longest of 16 geometric steps that goes not far beyond the minimum along `dx`."""
    lengths = longest * 0.7 ** jnp.arange(16, dtype=x.dtype)
    slopes = jax.vmap(lambda length: gradient(x + length * dx) @ dx)(lengths)
    # The first of the steps where this holds; argmax of all False is 0, so the shortest is allowed.
    allowed = jnp.append(slopes[:-1] <= 0.2 * jnp.abs(gradient(x) @ dx), True)
    return lengths[jnp.argmax(allowed)]


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.sqrt(jnp.finfo(x.dtype).tiny))
