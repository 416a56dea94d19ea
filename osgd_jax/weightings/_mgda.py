"""MGDA: the shortest vector in the convex hull of the gradients."""

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._solvers import nonnegative_qp
from osgd_jax.weightings._unit_rows import UnitRows, of_unit_rows


@named
def mgda() -> Weighting:
    """Weigh the tasks so that the direction is the shortest convex combination of the gradients.

    The direction decreases every loss, and is zero if and only if the parameters are
    Pareto-stationary:

    .. math::

       min_w ‖Jᵀ w‖²

    over weights w of the simplex. The convex hull leaves out tasks with a zero gradient.

    Source: Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization",
    Comptes Rendus Mathématique 2012; for networks, Sener and Koltun, "Multi-Task Learning as
    Multi-Objective Optimization", NeurIPS 2018.

    Returns:
      A weighting; the weights are non-negative and sum to one.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.mgda().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.71 0.29]
    """

    def weigh(rows: UnitRows) -> jax.Array:
        # With x the weights of the unit gradients, up to a factor, the constraint is a'x = 1. The
        # term (a'x)^2 changes nothing on it, and makes the minimum over all x >= 0 lie on its ray.
        shortest = jnp.min(rows.norms, where=rows.active, initial=1)
        a = jnp.where(rows.active, shortest / rows.norms, 0)
        weights = a * nonnegative_qp(rows.cosines + jnp.outer(a, a), -a)
        total = jnp.sum(weights)
        return weights / jnp.where(total > 0, total, 1)

    return of_unit_rows(weigh)
