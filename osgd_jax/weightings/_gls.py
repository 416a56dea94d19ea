"""Geometric loss strategy: the geometric mean of the losses."""

import jax
import jax.numpy as jnp

from osgd_jax._math import squared_norms
from osgd_jax.weightings._base import Weighting, named, stateless
from osgd_jax.weightings._tools import check_losses


@named
def gls() -> Weighting:
    """Weigh the tasks so that the direction is the gradient of the geometric mean of the losses.

    With K tasks of losses :math:`L_i`, the weights are

    .. math::

       w_i = (∏_j L_j)^{1 / K} / (K L_i)

    The mean leaves out tasks with a zero gradient.

    Source: Chennupati, Sistu, Yogamani and Rawashdeh, "MultiNet++: Multi-Stream Feature Aggregation
    and Geometric Loss Strategy for Multi-Task Learning", CVPR Workshops 2019.

    Returns:
      A weighting that needs the losses, which must be positive.

    Raises:
      ValueError: while tracing, without losses.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> losses = jnp.array([1.0, 4.0])
      >>> weights, _ = weightings.gls().weigh(gramian, (), losses=losses)
      >>> print(weights.round(2))
      [1.   0.25]
    """

    def weigh(gramian: jax.Array, *, losses: jax.Array | None, key: jax.Array | None) -> jax.Array:
        del key
        losses = check_losses(losses, gramian, "gls")
        active = squared_norms(gramian) > 0
        count = jnp.maximum(jnp.sum(active, dtype=losses.dtype), 1)
        log_losses = jnp.log(jnp.maximum(losses, jnp.finfo(losses.dtype).tiny))
        log_mean = jnp.sum(log_losses, where=active) / count
        log_weights = jnp.where(active, log_mean - log_losses, 0)
        return jnp.where(active, jnp.exp(jnp.minimum(log_weights, 80)), 0) / count

    return stateless(weigh, scaling="common")
