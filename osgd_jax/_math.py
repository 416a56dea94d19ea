"""The dtypes in which numbers of several dtypes are combined, whatever JAX's settings."""

from typing import Any

import jax
import jax.numpy as jnp


def result_type(*dtypes: Any) -> jnp.dtype:
    """Return what JAX promotes these to by default, also where it is set to refuse."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*dtypes)


def at_least_float32(*dtypes: Any) -> jnp.dtype:
    """Return what float32 and these are promoted to: statistics of half precision need it."""
    # A Python type such as `float` would be weak beside float32.
    return result_type(jnp.float32, *map(jax.dtypes.canonicalize_dtype, dtypes))
