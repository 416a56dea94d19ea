"""Gradient equilibrium: the mean over the outputs that a block serves."""

import jax
import jax.numpy as jnp

from osgd_jax._math import squared_norms
from osgd_jax.weightings._base import Weighting, named, stateless


@named
def gradient_equilibrium() -> Weighting:
    """Weigh each task by one over the number of tasks that reach the group of parameters.

    The paper scales gradients at the exits of a network with k exits during the backward pass:
    behind block i, gradients of classifier i by :math:`1 / (k - i + 1)` and gradients of later
    blocks by :math:`(k - i) / (k - i + 1)`. The factors on a path multiply to
    :math:`1 / (k - i + 1)` for each of the :math:`k - i + 1` losses that reach block i. This
    weighting with `scope="reach"` or `"leaf"` computes the same; with other scopes it is the mean
    over the whole group.

    Source: Li, Zhang, Qi, Yang and Huang, "Improved Techniques for Training Adaptive Deep
    Networks", ICCV 2019.

    Returns:
      A weighting.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.gradient_equilibrium().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.5 0.5]
    """

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        active = (squared_norms(gramian) > 0).astype(gramian.dtype)
        return active / jnp.maximum(jnp.sum(active), 1)

    return stateless(weigh, scaling="common")
