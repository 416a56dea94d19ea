"""IMTL-G: the direction that has the same component along every gradient."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._least_norm import solve_least_norm
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def imtl_g() -> Weighting:
    """Weigh the tasks so that the direction has equal projections onto all unit gradients.

    The weights sum to one and may be negative; if they would have to sum to zero, the direction is
    zero. For linearly dependent gradients, the projections are equal in the least squares sense. If
    the norms of the gradients differ a lot, the sum of the unnormalized weights can be negative.
    The direction then increases all losses, which is a property of the published method.

    Source: Liu, Li, Kuang, Xue, Chen, Yang, Liao and Zhang, "Towards Impartial Multi-task
    Learning", ICLR 2021.

    Returns:
      A weighting.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 9.0]])
      >>> weights, _ = weightings.imtl_g().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.75 0.25]
    """

    def weigh(rows: UnitRows) -> jax.Array:
        weights = solve_least_norm(rows.cosines, rows.active.astype(rows.norms.dtype)) / rows.norms
        # By the largest first: norms far apart give weights far apart.
        weights = weights / jnp.maximum(jnp.max(jnp.abs(weights)), 1)
        total = jnp.sum(weights)
        rounding = len(weights) * jnp.finfo(weights.dtype).eps * jnp.sum(jnp.abs(weights))
        has_sum = jnp.abs(total) > rounding
        return jnp.where(has_sum, weights / jnp.where(has_sum, total, 1), 0)

    return of_unit_rows(weigh)
