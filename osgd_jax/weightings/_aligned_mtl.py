"""Aligned-MTL: the gradients made orthogonal and of one length, as near to themselves as can be."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._jacobi import orthogonal_combinations
from osgd_jax.weightings._least_norm import above_rounding
from osgd_jax.weightings._tools import Numbers, check_preference, preference_like
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def aligned_mtl(preference: Numbers | None = None) -> Weighting:
    """Replace the singular values of the gradient matrix by the smallest one, and average.

    The condition number of the gradients becomes one, and no gradient grows. Singular values of
    zero stay zero; there is one for each linear dependency of the gradients, at all lengths.

    Source: Senushkin, Patakin, Kuznetsov and Konushin, "Independent Component Alignment for
    Multi-Task Learning", CVPR 2023.

    Args:
      preference: weights of the average, by name for losses in a dict; 1/K each if None.

    Returns:
      A weighting.

    Raises:
      ValueError: a preference that is negative, or zero for all; while tracing, one that does not
        have K numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.aligned_mtl().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.56 0.31]
    """
    preference = check_preference(preference)

    def weigh(rows: UnitRows) -> jax.Array:
        shares = preference_like(preference, rows.norms, 1 / len(rows.norms))
        return _aligned(rows.cosines, jnp.where(rows.active, rows.norms, 0), shares)

    return of_unit_rows(weigh)._replace(
        for_tasks=lambda tasks: aligned_mtl(by_position("preference", preference, tasks))
    )


@jax.custom_jvp
def _aligned(cosines: jax.Array, norms: jax.Array, shares: jax.Array) -> jax.Array:
    """Multiply s (D C D)^(-1/2) with the shares, D the norms and s the smallest singular value."""
    vectors, _, ratios = _decomposed(cosines, norms)
    aligned = vectors.T @ (ratios * (vectors @ shares))
    return jnp.where(jnp.any(ratios > 0), aligned, shares)


@_aligned.defjvp
def _(primals, tangents):
    (cosines, norms, shares), (d_cosines, d_norms, d_shares) = primals, tangents
    vectors, inverse, ratios = _decomposed(cosines, norms)
    kept = ratios > 0
    # The change of the Gramian is D X D. In the basis of its eigenvectors, and over the singular
    # values, it is of the order of X.
    growth = jnp.where(norms > 0, d_norms / jnp.where(norms > 0, norms, 1), 0)
    change = d_cosines + (growth[:, None] + growth[None]) * cosines
    scaled = inverse[:, None] * vectors * norms[None]
    outer = scaled @ change
    relative = outer @ scaled.T
    # Divided differences of the inverse root: among what is kept, and with the null space.
    sums = jnp.where(kept[:, None] & kept[None], ratios[:, None] + ratios[None], 1)
    within = -ratios[:, None] * ratios[None] / sums * relative
    lost = jnp.where(kept[:, None], 0, vectors * norms[None])
    across = (ratios * inverse)[:, None] * outer @ lost.T
    smallest = relative[jnp.argmax(ratios), jnp.argmax(ratios)] / 2
    turned = within + across + across.T + smallest * jnp.diag(ratios)
    tangent = vectors.T @ (turned @ (vectors @ shares) + ratios * (vectors @ d_shares))
    return _aligned(*primals), jnp.where(jnp.any(kept), tangent, d_shares)


def _decomposed(cosines: jax.Array, norms: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Find the singular vectors, as rows; one over the singular values; the smallest over each.

    The last two are zero for the singular values that are. How many are not is judged on the unit
    gradients, so that a short gradient counts as much as a long one.
    """
    eigenvalues, directions = jnp.linalg.eigh(cosines)
    independent = above_rounding(eigenvalues)
    roots = jnp.sqrt(jnp.where(independent, eigenvalues, 0))
    vectors, values = orthogonal_combinations(norms[:, None] * directions * roots[None])
    rank = jnp.sum(independent) - jnp.sum(norms == 0)
    larger = values[None] > values[:, None]
    earlier = (values[None] == values[:, None]) & jnp.tri(len(values), k=-1, dtype=bool)
    kept = jnp.sum(larger | earlier, axis=1) < rank
    inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
    return vectors, inverse, jnp.min(values, where=kept, initial=jnp.inf) * inverse
