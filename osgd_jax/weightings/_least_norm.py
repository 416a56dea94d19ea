"""Least-norm solutions with a Gramian of unit gradients, differentiable at every rank."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


@jax.custom_jvp
def solve_least_norm(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """Multiply the pseudo-inverse of a positive semidefinite matrix with a vector.

    Differentiated as if the rank did not change, also where eigenvalues coincide and the
    derivatives of single eigenvectors are infinite.

    Args:
      matrix: `[K, K]`.
      vector: `[K]`.

    Returns:
      Array `[K]`.
    """
    return _pseudo_inverse(matrix)(vector)


@solve_least_norm.defjvp
def _(primals, tangents):
    (matrix, vector), (d_matrix, d_vector) = primals, tangents
    solve = _pseudo_inverse(matrix)
    x = solve(vector)
    inside = solve(d_vector - d_matrix @ x) + solve(solve(d_matrix @ (vector - matrix @ x)))
    turned = d_matrix @ solve(x)
    return x, inside + turned - matrix @ solve(turned)


def above_rounding(eigenvalues: jax.Array) -> jax.Array:
    """Tell which of the ascending eigenvalues of a Gramian are above its rounding errors."""
    tolerance = 8 * len(eigenvalues) * jnp.finfo(eigenvalues.dtype).eps
    return eigenvalues > tolerance * eigenvalues[-1]


def _pseudo_inverse(matrix: jax.Array) -> Callable[[jax.Array], jax.Array]:
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    kept = above_rounding(eigenvalues)
    inverse = jnp.where(kept, 1 / jnp.where(kept, eigenvalues, 1), 0)
    return lambda vector: vectors @ (inverse * (vectors.T @ vector))
