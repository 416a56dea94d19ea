"""Scalarization: the losses added up, the baseline of every comparison."""

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
