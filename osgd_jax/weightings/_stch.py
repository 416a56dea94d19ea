"""Smooth Tchebycheff scalarization: a smooth maximum of the losses."""

import jax

from osgd_jax._math import softmax_of_active, squared_norms
from osgd_jax._validation import check_range
from osgd_jax.weightings._base import Weighting, named, stateless
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._tools import (
    Numbers,
    check_losses,
    check_preference,
    preference_like,
)


@named
def stch(mu: float | jax.Array = 1.0, preference: Numbers | None = None) -> Weighting:
    """Weigh the tasks so that the direction is the gradient of a smooth maximum of the losses.

    With the preferences p, the losses L and the ideal point at zero, the smooth maximum and the
    weights are

    .. math::

       μ log ∑_i exp(p_i L_i / μ)
       w_i = p_i softmax(p L / μ)_i

    Source: Lin, Zhang, Yang, Liu, Wang and Zhang, "Smooth Tchebycheff Scalarization for
    Multi-Objective Optimization", ICML 2024.

    Args:
      mu: μ, the smoothness; near zero only the largest :math:`p_i L_i` counts.
      preference: p, by name for losses in a dict; 1/K each if None.

    Returns:
      A weighting that needs the losses.

    Raises:
      ValueError: `mu` not positive, or a preference that is negative, or zero for all; while
        tracing, one that does not have K numbers, or no losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> losses = jnp.array([1.0, 4.0])
      >>> weights, _ = weightings.stch().weigh(gramian, (), losses=losses)
      >>> print(weights.round(2))
      [0.09 0.41]
    """
    mu = check_range("mu", mu, "above zero", lambda mu: mu > 0)
    preference = check_preference(preference)

    def weigh(gramian: jax.Array, *, losses: jax.Array | None, key: jax.Array | None) -> jax.Array:
        del key
        losses = check_losses(losses, gramian, "stch")
        shares = preference_like(preference, losses, 1 / len(losses))
        return shares * softmax_of_active(shares * losses / mu, squared_norms(gramian) > 0)

    return stateless(weigh, scaling="common")._replace(
        for_tasks=lambda tasks: stch(mu, by_position("preference", preference, tasks))
    )
