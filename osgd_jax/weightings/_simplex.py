"""The simplex of weights that sum to one: what `modo` and `sdmgrad` project onto."""

import jax
import jax.numpy as jnp


def project(point: jax.Array, active: jax.Array) -> jax.Array:
    """Return the nearest weights that are not negative, sum to one, and are zero where inactive."""
    # Numbers more than one below the largest get no weight, so that no others need be told apart.
    largest = jnp.max(point, where=active, initial=jnp.finfo(point.dtype).min)
    below = jnp.where(active, jnp.maximum(point - largest, -2), -2)
    sums = jnp.cumsum(jnp.sort(below, descending=True))
    # The threshold of the projection is the largest that any number of leading entries gives.
    threshold = jnp.max((sums - 1) / jnp.arange(1, len(point) + 1, dtype=point.dtype))
    return jnp.where(active, jnp.maximum(below - threshold, 0), 0)


def present(gramian: jax.Array) -> jax.Array:
    """Tell which tasks have a gradient, also where their unbiased squared norm is not positive."""
    return jnp.any(gramian != 0, axis=1)


def shares(weights: jax.Array, active: jax.Array) -> jax.Array:
    """Scale weights to sum to one over the active tasks; equal ones where all are zero."""
    kept = jnp.where(active, weights, 0)
    kept = jnp.where(jnp.any(kept > 0), kept, active.astype(kept.dtype))
    total = jnp.sum(kept)
    return kept / jnp.where(total > 0, total, 1)


def remember(weights: jax.Array, before: jax.Array, active: jax.Array) -> jax.Array:
    """Return the weights to keep: the tasks that are absent keep theirs."""
    mass = 1 - jnp.sum(jnp.where(active, 0, before))
    return jnp.where(active, mass * weights.astype(before.dtype), before)
