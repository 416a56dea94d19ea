"""Scalarization: the losses added up, the baseline of every comparison."""

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._validation import check_range
from osgd_jax.weightings._base import Weighting, named, stateless
from osgd_jax.weightings._by_task import by_position
from osgd_jax.weightings._tools import Numbers, numbers_like


@named
def sum() -> Weighting:
    """Weigh every task by one: the gradient of the sum of the losses.

    The update differs from that of `jax.grad` of the sum only by rounding. If a gradient consists
    of rounding errors, as for a bias before batch normalization, Adam turns this into a difference
    of the size of the learning rate. Such biases have no effect on the outputs.

    Returns:
      A weighting.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.sum().weigh(gramian, ())
      >>> print(weights.round(2))
      [1. 1.]
    """

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        return jnp.ones_like(gramian, shape=gramian.shape[:1])

    return stateless(weigh, scaling="common")


@named
def mean() -> Weighting:
    """Weigh each of the K tasks by 1/K: the gradient of the mean of the losses.

    Returns:
      A weighting.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.mean().weigh(gramian, ())
      >>> print(weights.round(2))
      [0.5 0.5]
    """

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        return jnp.full_like(gramian, 1 / gramian.shape[0], shape=gramian.shape[:1])

    return stateless(weigh, scaling="common")


@named
def constant(weights: Numbers) -> Weighting:
    """Weigh the tasks by fixed numbers: the gradient of the sum of w_i L_i.

    Args:
      weights: one number for each task, by name for losses in a dict: `{"pde": 1.0, "bc": 100.0}`.

    Returns:
      A weighting.

    Raises:
      ValueError: while tracing, if the weights do not match the tasks or their names, or if
        different numbers by position meet losses in a dict.

    Example:
      >>> import jax.numpy as jnp
      >>> from osgd_jax import weightings
      >>> gramian = jnp.array([[1.0, -1.0], [-1.0, 4.0]])
      >>> weights, _ = weightings.constant((1.0, 100.0)).weigh(gramian, ())
      >>> print(weights)
      [  1. 100.]
    """
    wanted = "a finite number for each task"
    weights = check_range("weights", weights, wanted, lambda w: abs(w) < np.inf, most_axes=1)

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        return numbers_like("weights", weights, gramian[0])

    return stateless(weigh, scaling="common")._replace(
        for_tasks=lambda tasks: constant(by_position("weights", weights, tasks))
    )
