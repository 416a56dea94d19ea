"""ConFIG: the direction at equal angles to all gradients."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._least_norm import solve_least_norm
from osgd_jax.weightings._tools import Numbers, check_preference, preference_like
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def config(preference: Numbers | None = None) -> Weighting:
    """Weigh the tasks so that the direction has the same cosine with all gradients.

    Its length is the sum of the components of the gradients along it. For linearly dependent
    gradients the cosines are equal in the least squares sense. If that is not possible at all, as
    for opposite gradients, the direction is zero.

    Source: Liu, Chu and Thuerey, "ConFIG: Towards Conflict-free Training of Physics Informed Neural
    Networks", ICLR 2025, arXiv 2408.11104.

    Args:
      preference: ratios of the cosines, by name for losses in a dict; equal if None.

    Returns:
      A weighting.

    Raises:
      ValueError: a preference that is negative, or zero for all; while tracing, one that does not
        have K numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.config().weigh(gramian, ())
      >>> print(weights.round(2))
      [1.5  0.75]
    """
    preference = check_preference(preference)

    def weigh(rows: UnitRows) -> jax.Array:
        wanted = jnp.where(rows.active, preference_like(preference, rows.norms, 1.0), 0)
        solution = solve_least_norm(rows.cosines, wanted)
        components = rows.cosines @ solution
        squared_norm = solution @ components
        rounding = 8 * len(wanted) * jnp.finfo(wanted.dtype).eps
        has_direction = squared_norm > rounding * (wanted @ wanted)
        length = jnp.sum(rows.norms * components, where=rows.active)
        length = jnp.where(has_direction, length / jnp.where(has_direction, squared_norm, 1), 0)
        return length * solution / rows.norms

    return of_unit_rows(weigh)._replace(
        for_tasks=lambda tasks: config(by_position("preference", preference, tasks))
    )
