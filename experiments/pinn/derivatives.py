"""Derivatives of a field along one coordinate, at many points in one pass forward."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

# From points `[N, 2]` to values `[N]`, each from one point alone.
Field = Callable[[jax.Array], jax.Array]


def slope(field: Field, points: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """Values of a field and its first derivatives along a coordinate, `[N]` each."""
    return jax.jvp(field, (points,), (_along(points, axis),))


def curvature(field: Field, points: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Return the results of `slope`, and the second derivatives."""

    def sloped(points: jax.Array) -> tuple[jax.Array, jax.Array]:
        return slope(field, points, axis)

    (value, first), (_, second) = jax.jvp(sloped, (points,), (_along(points, axis),))
    return value, first, second


def _along(points: jax.Array, axis: int) -> jax.Array:
    return jnp.zeros_like(points).at[:, axis].set(1)
