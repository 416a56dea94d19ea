"""What several weightings share: unit gradients, preferences, and checks of their arguments."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class UnitRows(NamedTuple):
    """The task gradients taken apart into directions and lengths.

    Attributes:
      cosines: Gramian of the gradients divided by their norms, `[K, K]`. A gradient of zero gives a
        row and column of zeros with a one on the diagonal: a task apart from the others.
      norms: norms divided by the largest, `[K]`, in (0, 1]; one for gradients of zero.
      log_largest: logarithm of the largest norm.
      active: which gradients are not zero, `[K]`.
    """

    cosines: jax.Array
    norms: jax.Array
    log_largest: jax.Array
    active: jax.Array


def unit_rows(gramian: jax.Array, scales: jax.Array | None = None) -> UnitRows:
    """Take apart the gradients whose Gramian, each divided by its scale, is given."""
    squares = jnp.diagonal(gramian)
    active = squares > 0
    norms = jnp.sqrt(jnp.where(active, squares, 1))
    both = active[:, None] & active
    cosines = jnp.where(both, gramian / norms[:, None] / norms, 0)
    cosines = jnp.fill_diagonal(cosines, 1, inplace=False)
    if scales is None:
        scales = jnp.ones_like(norms)
    # The largest scale first, so that no product leaves the range.
    largest_scale = jnp.max(jnp.where(active, scales, 0), initial=jnp.finfo(norms.dtype).tiny)
    norms = jnp.where(active, norms * (scales / largest_scale), 0)
    largest = jnp.max(norms, initial=jnp.finfo(norms.dtype).tiny)
    floor = jnp.finfo(norms.dtype).tiny ** 0.75
    return UnitRows(
        cosines,
        jnp.where(active, jnp.maximum(norms / largest, floor), 1),
        jnp.log(largest) + jnp.log(largest_scale),
        active,
    )


def weights_of_rows(coefficients: jax.Array, norms: jax.Array) -> jax.Array:
    """Weights of the sum over i of norm_i sum_j C_ij (unit gradient j)."""
    return norms @ coefficients / norms


def solve_least_norm(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """The pseudo-inverse of a positive semidefinite matrix times a vector."""
    eigenvalues, vectors, kept = eigen(matrix)
    inverse = jnp.where(kept, 1 / jnp.where(kept, eigenvalues, 1), 0)
    return vectors @ (inverse * (vectors.T @ vector))


def eigen(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Eigenvalues, eigenvectors, and which of them are above the rounding errors of a Gramian."""
    eigenvalues, vectors = jnp.linalg.eigh(matrix)
    tolerance = 8 * matrix.shape[0] * jnp.finfo(matrix.dtype).eps
    return eigenvalues, vectors, eigenvalues > tolerance * eigenvalues[-1]


def softmax_of_active(logits: jax.Array, active: jax.Array) -> jax.Array:
    """Softmax over the active tasks, zero for the others."""
    exponentials = jnp.where(
        active, jnp.exp(logits - jnp.max(logits, where=active, initial=-jnp.inf)), 0
    )
    total = jnp.sum(exponentials)
    return exponentials / jnp.where(total > 0, total, 1)


def check_preference(preference: Sequence[float] | None) -> tuple[float, ...] | None:
    """The preference as a tuple of numbers.

    Raises:
      ValueError: a negative or not finite number, or only zeros.
    """
    if preference is None:
        return None
    numbers = tuple(float(number) for number in np.ravel(preference))
    if not all(0 <= number < float("inf") for number in numbers) or not any(numbers):
        raise ValueError(
            f"preference={preference!r} must be a finite non-negative number for each task, at"
            " least one of them positive."
        )
    return numbers


def preference_like(
    preference: tuple[float, ...] | None, gramian: jax.Array, default: float
) -> jax.Array:
    """The preference as an array `[K]`, `default` for each task where there is none.

    Raises:
      ValueError: a preference of another length than K.
    """
    num_tasks = gramian.shape[0]
    if preference is None:
        return jnp.full_like(gramian, default, shape=(num_tasks,))
    if len(preference) != num_tasks:
        raise ValueError(f"preference has {len(preference)} numbers; there are {num_tasks} tasks.")
    return jnp.asarray(preference, gramian.dtype)


def check_losses(losses: jax.Array | None, gramian: jax.Array, method: str) -> jax.Array:
    """The losses in the dtype of the Gramian.

    Raises:
      ValueError: no losses, or not K of them.
    """
    if losses is None:
        raise ValueError(
            f"{method} weighs the tasks by their losses: pass them,"
            " tx.update(grads, state, params, losses=losses)."
        )
    losses = jnp.asarray(losses, gramian.dtype)
    if losses.shape != gramian.shape[:1]:
        raise ValueError(
            f"losses has shape {losses.shape}; {method} needs one loss for each of the"
            f" {gramian.shape[0]} tasks."
        )
    return losses


def check_num_tasks(num_tasks: int, gramian: jax.Array, method: str) -> None:
    """Raise a ValueError unless the Gramian is of the number of tasks of the state."""
    if gramian.shape[0] != num_tasks:
        raise ValueError(
            f"{method}(num_tasks={num_tasks}) was given the gradients of {gramian.shape[0]} tasks."
        )
