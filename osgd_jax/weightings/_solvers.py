"""The small convex problems behind the weightings, each in a fixed number of Newton steps.

All three work on a Gramian of unit gradients (ones on the diagonal), K <= 64 or so, under `jit` and
`vmap`, without a callback, a convergence test that the host would have to see, or a solver package.

Existing JAX solvers were considered. qpax solves general quadratic programs, with constraints as
matrices of their own, advises tolerances of no less than 1e-5 in float32, and loops until
convergence, so that in a batch all wait for the slowest. jaxopt is no longer developed. optimistix
has no inequalities. mpax is for large linear and quadratic programs, by first-order steps that need
thousands of iterations for six digits. Here the only constraint is a sign, and an interior-point
method for that alone takes forty lines.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve

# Worst cases of K = 64 with rank-deficient or nearly opposed gradients need 15 and 25.
_QP_STEPS = 20
_SMOOTH_STEPS = 30


def nonnegative_qp(matrix: jax.Array, linear: jax.Array) -> jax.Array:
    """Minimise x' M x / 2 + q' x over x >= 0, for M positive semidefinite of the order of one.

    Mehrotra's predictor-corrector interior-point method. Where the minimiser is not unique, the
    result is the analytic centre of all of them, so symmetric tasks get symmetric values.

    Args:
      matrix: M, `[K, K]`.
      linear: q, `[K]`.

    Returns:
      Array `[K]`. For the given M and q, M x is right to about 1e-6 in float32.
    """

    def step(_, point):
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
    x, _ = lax.fori_loop(0, _QP_STEPS, step, (ones, ones))
    return x


def nonnegative_minimum(
    gradient: Callable[[jax.Array], jax.Array],
    hessian: Callable[[jax.Array], jax.Array],
    start: jax.Array,
) -> jax.Array:
    """Minimise a smooth convex function over x >= 0, by an interior-point method with line search.

    Args:
      gradient: `[K]` to `[K]`.
      hessian: `[K]` to `[K, K]`.
      start: a positive point, `[K]`.

    Returns:
      Array `[K]`.
    """

    def step(_, point):
        x, z = point
        slope = gradient(x)
        solve = _factor(hessian(x), z / x)
        mean_product = jnp.mean(x * z)

        dx = -solve(slope)
        dz = -z - z / x * dx
        length = _longest_step(point, (dx, dz), 1.0)
        reached = jnp.mean((x + length * dx) * (z + length * dz))
        target = jnp.maximum((reached / mean_product) ** 3, 0.05) * mean_product

        dx = -solve(slope - target / x)
        dz = target / x - z - z / x * dx
        length = _line_search(
            lambda y: gradient(y) - target / y, x, dx, _longest_step(point, (dx, dz), 0.99)
        )
        return _positive(x + length * dx), _positive(z + length * dz)

    x, _ = lax.fori_loop(0, _SMOOTH_STEPS, step, (start, jnp.ones_like(start)))
    return x


def balanced_point(matrix: jax.Array, targets: jax.Array, exponent: float) -> jax.Array:
    """Solve (M x)_i = c_i x_i^-p for x > 0, with M positive semidefinite with a unit diagonal.

    The solution minimises x' M x / 2 - sum_i c_i x_i^(1-p) / (1-p), a convex function: Newton's
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
    matrix = matrix + _rounding(matrix) * jnp.eye(len(targets), dtype=matrix.dtype)
    path = [exponent]
    while path[0] < 1:
        path.insert(0, min(1.0, path[0] * 1.6))
    steps = [p for p in path[:-1] for _ in range(6)] + [exponent] * 16
    exponents = jnp.asarray(steps, matrix.dtype)

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
    return lax.fori_loop(0, len(steps), step, start)


def _factor(matrix: jax.Array, diagonal: jax.Array) -> Callable[[jax.Array], jax.Array]:
    """Solver for (matrix + diag(diagonal)) x = b."""
    # The ridge is in the factor only, not in the residuals that the steps bring to zero, so it
    # slows the last digits of the least certain directions but does not move the solution.
    ridge = _rounding(matrix) * jnp.maximum(1, jnp.max(jnp.diagonal(matrix)))
    lower = jnp.linalg.cholesky(matrix + jnp.diag(diagonal + ridge))
    return lambda b: cho_solve((lower, True), b)


def _rounding(matrix: jax.Array) -> float:
    return 2 * matrix.shape[0] * float(jnp.finfo(matrix.dtype).eps)


def _longest_step(point, direction, fraction: float) -> jax.Array:
    """Step along `direction`, at most 1, that leaves `1 - fraction` of the way to the boundary."""
    lengths = [
        jnp.min(jnp.where(d < 0, -x / jnp.where(d < 0, d, -1), jnp.inf))
        for x, d in zip(point, direction, strict=True)
    ]
    return jnp.minimum(1, fraction * jnp.min(jnp.stack(lengths)))


def _line_search(gradient, x: jax.Array, dx: jax.Array, longest: jax.Array) -> jax.Array:
    """Longest of 16 geometric steps that does not go far beyond the minimum along `dx`."""
    lengths = longest * 0.7 ** jnp.arange(16, dtype=x.dtype)
    slopes = jax.vmap(lambda length: gradient(x + length * dx) @ dx)(lengths)
    # The first of the steps where this holds; argmax of all False is 0, so the shortest is allowed.
    allowed = (slopes <= 0.2 * jnp.abs(gradient(x) @ dx)).at[-1].set(True)
    return lengths[jnp.argmax(allowed)]


def _positive(x: jax.Array) -> jax.Array:
    return jnp.maximum(x, jnp.sqrt(jnp.finfo(x.dtype).tiny))
