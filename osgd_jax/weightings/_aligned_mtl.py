"""Aligned-MTL: the gradients made orthogonal and of one length, as near to themselves as can be."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, stateless
from osgd_jax.weightings._tools import check_preference, eigen, preference_like


def aligned_mtl(preference: Sequence[float] | None = None) -> Weighting:
    """Replace the singular values of the gradient matrix by the smallest one, and average.

    The condition number of the gradients becomes one, and none grows. Singular values of zero stay
    (those within the rounding errors of the Gramian).

    Source: Senushkin, Patakin, Kuznetsov and Konushin, "Independent Component Alignment for
    Multi-Task Learning", CVPR 2023.

    Args:
      preference: weights of the average; 1/K each if None.

    Returns:
      A weighting.

    Raises:
      ValueError: a preference that is negative, or zero for all; while tracing, one that does not
        have K numbers.
    """
    preference = check_preference(preference)

    def weigh(gramian: jax.Array, *, losses: jax.Array | None, key: jax.Array | None) -> jax.Array:
        del losses, key
        shares = preference_like(preference, gramian, 1 / len(gramian))
        eigenvalues, vectors, kept = eigen(gramian)
        smallest = jnp.min(eigenvalues, where=kept, initial=jnp.inf)
        factors = jnp.sqrt(jnp.where(kept, smallest / jnp.where(kept, eigenvalues, 1), 0))
        aligned = vectors @ (factors * (vectors.T @ shares))
        return jnp.where(jnp.any(kept), aligned, shares)

    return stateless(weigh, scaling="common")
