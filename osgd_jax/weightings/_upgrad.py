"""UPGrad: every gradient projected onto the cone of directions without conflict."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._solvers import nonnegative_qp
from osgd_jax.weightings._tools import Numbers, check_preference, preference_like
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows, weights_of_rows


@named
def upgrad(preference: Numbers | None = None) -> Weighting:
    """Project each gradient onto the dual cone of all gradients, and average the projections.

    The dual cone holds the directions d with :math:`⟨g_i, d⟩ ≥ 0` for all i, so that to first order
    no loss increases. The projection of a gradient is the nearest such direction. The result is
    linear in the length of each gradient.

    Source: Quinton and Rey, "Jacobian Descent for Multi-Objective Optimization", arXiv 2406.16232.

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
      >>> weights, _ = weightings.upgrad().weigh(gramian, ())
      >>> print(weights.round(2))
      [1.   0.62]
    """
    preference = check_preference(preference)

    def weigh(rows: UnitRows) -> jax.Array:
        # The projection of J'u is J'v, with v >= u of the least norm of J'v.
        added = jax.vmap(nonnegative_qp, in_axes=(None, 0))(rows.cosines, rows.cosines)
        projections = jnp.eye(len(added), dtype=added.dtype) + added
        shares = preference_like(preference, rows.norms, 1 / len(rows.norms))
        return weights_of_rows(shares[:, None] * projections, rows.norms)

    return of_unit_rows(weigh)._replace(
        for_tasks=lambda tasks: upgrad(by_position("preference", preference, tasks))
    )
