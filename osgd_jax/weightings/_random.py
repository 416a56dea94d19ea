"""Random loss weighting."""

import jax

from osgd_jax._math import softmax_of_active
from osgd_jax.weightings._base import Weighting, named, stateless


@named
def random() -> Weighting:
    """Weigh the tasks by the softmax of standard normal numbers, drawn at each step.

    Source: Lin, Ye, Zhang and Tsang, "Reasonable Effectiveness of Random Weighting: A Litmus Test
    for Multi-Task Learning", TMLR 2022.

    Returns:
      A weighting that needs a key.

    Raises:
      ValueError: while tracing, if there is no key.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> weights, _ = weightings.random().weigh(jnp.eye(2), (), key=jax.random.key(0))
      >>> print(weights.sum().round(2))
      1.0
    """

    def weigh(gramian: jax.Array, *, losses: jax.Array | None, key: jax.Array | None) -> jax.Array:
        del losses
        if key is None:
            raise ValueError(
                "random draws its weights at each step and needs a PRNG key: pass key=."
            )
        active = gramian.diagonal() > 0
        return softmax_of_active(jax.random.normal(key, active.shape, gramian.dtype), active)

    return stateless(weigh, scaling="common")
