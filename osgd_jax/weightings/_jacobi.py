"""Singular vectors of rows whose lengths may be far apart."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def orthogonal_combinations(rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the rotation of the rows of a matrix after which they are orthogonal to each other.

    One-sided Jacobi. If the unit rows are well conditioned, every singular value is right to
    rounding, however small (Demmel and Veselić, "Jacobi's Method Is More Accurate Than QR", SIAM J.
    Matrix Anal. 1992); LAPACK's and an eigenvalue decomposition of the Gramian are right to the
    rounding of the largest only.

    Args:
      rows: `[K, K]`.

    Returns:
      The left singular vectors as rows, `[K, K]`, and the singular values, `[K]`, in no order.
    """
    size = len(rows)
    odd = size % 2
    rounds = size + odd - 1
    sweeps = 4 + math.ceil(math.log2(size + 1))

    def turn(_, carry):
        rows, vectors = carry
        x, y = jnp.split(rows, 2)
        scale = jnp.maximum(jnp.abs(x).max(axis=1), jnp.abs(y).max(axis=1))
        scale = jnp.where(scale > 0, scale, 1)[:, None]
        x, y = x / scale, y / scale
        difference = jnp.sum((y - x) * (y + x), axis=1) / 2
        product = jnp.sum(x * y, axis=1)
        length = jnp.abs(difference) + jnp.hypot(difference, product)
        tangent = jnp.where(length > 0, product / jnp.where(length > 0, length, 1), 0)
        tangent = jnp.where(difference < 0, -tangent, tangent)[:, None]
        cosine = lax.rsqrt(1 + tangent**2)

        def turned(matrix):
            x, y = jnp.split(matrix, 2)
            return _next_round(cosine * (x - tangent * y), cosine * (tangent * x + y))

        return turned(rows), turned(vectors)

    # Without a partner, a row meets one of zeros.
    rows, vectors = jnp.pad(rows, ((0, odd), (0, 0))), jnp.eye(size + odd, size, dtype=rows.dtype)
    rows, vectors = lax.fori_loop(0, sweeps * rounds, turn, (rows, vectors))
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    largest = jnp.where(largest > 0, largest, 1)
    norms = largest[:, 0] * jnp.linalg.norm(rows / largest, axis=1)
    return vectors[:size], norms[:size]


def _next_round(x: jax.Array, y: jax.Array) -> jax.Array:
    """Let all but the first row of x move up by one place, round the two halves.

    Rows opposite each other are a pair. In as many rounds as there are other rows, everybody meets
    everybody, and all are in their places again.
    """
    return jnp.concatenate([x[:1], y[:1], x[1:-1], y[1:], x[1:][-1:]])
