"""One step of an optimizer on numbers that a weighting learns, one for each task."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def learn(
    optimizer: optax.GradientTransformation,
    gradient: jax.Array,
    state: Any,
    values: jax.Array,
    active: jax.Array,
) -> tuple[jax.Array, Any]:
    """Descend along `gradient`, leaving the values and moments of inactive tasks as they are."""
    gradient = jnp.where(active, gradient, 0).astype(values.dtype)
    updates, next_state = optimizer.update(gradient, state, values)
    stepped = jnp.asarray(optax.apply_updates(values, updates))

    def keep_inactive(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(active, new, old) if jnp.shape(new) == active.shape else new

    return (
        keep_inactive(stepped, values),
        jax.tree.map(keep_inactive, next_state, state),
    )
