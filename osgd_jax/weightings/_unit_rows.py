"""The task gradients as directions and lengths, the form that most papers' formulas take."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from osgd_jax._math import squared_norms
from osgd_jax.weightings._base import Weighting, stateless


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


def of_unit_rows(weigh: Callable[[UnitRows], jax.Array]) -> Weighting:
    """Make a `Weighting` of a function from unit gradients and their norms to weights `[K]`."""

    def weigh_gramian(
        gramian: jax.Array,
        *,
        losses: jax.Array | None,
        key: jax.Array | None,
        scales: jax.Array | None = None,
    ) -> jax.Array:
        del losses, key
        return weigh(unit_rows(gramian, scales))

    return stateless(weigh_gramian, scaling="row")


def unit_rows(gramian: jax.Array, scales: jax.Array | None = None) -> UnitRows:
    """Take apart the gradients whose Gramian, each divided by its scale, is given."""
    squares = squared_norms(gramian)
    active = squares > 0
    norms = jnp.sqrt(jnp.where(active, squares, 1))
    both = active[:, None] & active[None]
    cosines = jnp.where(both, gramian / norms[:, None] / norms[None], 0)
    cosines = jnp.where(jnp.eye(len(norms), dtype=bool), 1, cosines)
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
    """Weigh the gradients to give the sum over i of norm_i sum_j C_ij (unit gradient j)."""
    return norms @ coefficients / norms
