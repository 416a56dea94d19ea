"""Scalarization: the losses added up, the baseline of every comparison."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from osgd_jax.weightings._base import Weighting, stateless


def sum() -> Weighting:
    """Weigh every task by one: the gradient of the sum of the losses."""

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        return jnp.ones_like(gramian, shape=gramian.shape[:1])

    return stateless(weigh, scaling="common")


def mean() -> Weighting:
    """Weigh each of the K tasks by 1/K: the gradient of the mean of the losses."""

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        return jnp.full_like(gramian, 1 / gramian.shape[0], shape=gramian.shape[:1])

    return stateless(weigh, scaling="common")


def constant(weights: Sequence[float]) -> Weighting:
    """Weigh the tasks by fixed numbers: the gradient of the sum of w_i L_i.

    Args:
      weights: one number for each task.

    Returns:
      A weighting.

    Raises:
      ValueError: while tracing, where there are not as many weights as tasks.
    """
    weights = tuple(float(weight) for weight in weights)

    def weigh(gramian: jax.Array, **_: jax.Array | None) -> jax.Array:
        if len(weights) != gramian.shape[0]:
            raise ValueError(
                f"constant was given {len(weights)} weights; there are {gramian.shape[0]} tasks."
            )
        return jnp.asarray(weights, gramian.dtype)

    return stateless(weigh, scaling="common")
