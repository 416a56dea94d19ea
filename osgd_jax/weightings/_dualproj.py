"""DualProj: the mean gradient projected onto the cone of directions without conflict."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._solvers import nonnegative_qp
from osgd_jax.weightings._tools import Numbers, check_preference, preference_like
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def dualproj(preference: Numbers | None = None) -> Weighting:
    """Project the mean gradient onto the dual cone of all gradients.

    The result is the direction nearest to the mean gradient for which no loss increases, to first
    order.

    Source: Lopez-Paz and Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017,
    for the projection; Quinton and Rey, arXiv 2406.16232, for its use here.

    Args:
      preference: weights of the mean, by name for losses in a dict; 1/K each if None.

    Returns:
      A weighting.

    Raises:
      ValueError: a preference that is negative, or zero for all; while tracing, one that does not
        have K numbers.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.dualproj().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.5 0.5]
    """
    preference = check_preference(preference)

    def weigh(rows: UnitRows) -> jax.Array:
        shares = preference_like(preference, rows.norms, 1 / len(rows.norms))
        mean = shares * rows.norms
        # The problem is homogeneous; its solver wants numbers of the order of one.
        largest = jnp.max(jnp.where(rows.active, mean, 0))
        largest = jnp.where(largest > 0, largest, 1)
        added = largest * nonnegative_qp(rows.cosines, rows.cosines @ (mean / largest))
        return shares + added / rows.norms

    return of_unit_rows(weigh)._replace(
        for_tasks=lambda tasks: dualproj(by_position("preference", preference, tasks))
    )
