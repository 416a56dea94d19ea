"""Nash-MTL: the step as the solution of a bargaining game between the tasks."""

from osgd_jax.weightings._base import Weighting, named
from osgd_jax.weightings._fairgrad import fair_weights
from osgd_jax.weightings._unit_rows import of_unit_rows


@named
def nash_mtl() -> Weighting:
    """Weigh the tasks by the Nash bargaining solution, (G w)_i = 1 / w_i.

    The direction maximizes the product of the decreases of the losses over a ball, and does not
    change when a gradient is multiplied by a positive number. Its norm is the square root of K for
    all gradients, so the learning rate alone sets the length of the step. Pareto-stationary points
    have no solution; there the weights are large but finite.

    Where the paper approximates the solution step by step, this minimizes

    .. math::

       wᵀ G w / 2 - ∑_i log w_i

    exactly, so the weighting has no state.

    Source: Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik and Fetaya, "Multi-Task Learning as
    a Bargaining Game", ICML 2022.

    Returns:
      A weighting; the weights are positive.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.nash_mtl().weigh(gramian, ())
      >>> print(weights.round(2))
      [1.41 0.71]
    """
    return of_unit_rows(lambda rows: fair_weights(rows, 1.0))
