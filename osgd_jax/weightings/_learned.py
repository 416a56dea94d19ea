"""Numbers that a weighting learns, one for each task, each by a separate optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

# Under Adam's square root: changes no value, but its derivative is finite where a gradient is zero.
EPS_ROOT = 1e-30


def start_learning(optimizer: optax.GradientTransformation, values: jax.Array) -> Any:
    """Make a state for each of the values `[K]`."""
    return jax.vmap(optimizer.init)(values)


def learn(
    optimizer: optax.GradientTransformation,
    gradient: jax.Array,
    state: Any,
    values: jax.Array,
    active: jax.Array,
) -> tuple[jax.Array, Any]:
    """Take one step along `gradient` `[K]`; inactive tasks keep their values and states."""

    # Adam raises a number to the power of an integer array.
    @jax.numpy_dtype_promotion("standard")
    def step(gradient, state, value):
        updates, state = optimizer.update(gradient, state, value)
        return optax.apply_updates(value, updates), state

    gradient = jnp.where(active, gradient, 0).astype(values.dtype)
    stepped = jax.vmap(step)(gradient, state, values)
    return jax.tree.map(lambda new, old: jnp.where(active, new, old), stepped, (values, state))
