"""Conversion of arrays from users to a form that compiled programs take."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def as_array(name: str, value: Any) -> jax.Array | np.ndarray:
    """Return `value` as an array in native byte order; host arrays stay on the host.

    Programs are compiled for a dtype by its name, and `>f4` and `<f4` share the name float32: an
    array of FITS or of some microscopes would be read with its bytes reversed.

    Args:
      name: of the argument, for the error.
      value: an array, or anything that NumPy makes one of.

    Raises:
      ValueError: NumPy makes no array of it, it is traced, or entries are masked.
    """
    if isinstance(value, Tracer):
        raise traced_error(name)
    if isinstance(value, jax.Array):
        return value
    if np.ma.is_masked(value):
        raise ValueError(
            f"`{name}` must have no masked entries, as the net would read what is under the mask;"
            f" fill them first, such as by {name}.filled(0)."
        )
    try:
        array = np.asarray(value)
    except jax.errors.TracerArrayConversionError:
        raise traced_error(name) from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"`{name}` must be an array: {error}") from None
    if array.dtype == np.longdouble:  # JAX has no floats above 64 bits
        return array.astype(np.float64)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def traced_error(name: str) -> ValueError:
    """Return the error for traced arguments of what runs compiled programs."""
    return ValueError(
        f"{name} is traced: predictors and generators run programs that are compiled already and"
        " cannot be called under jax.jit, jax.vmap or jax.grad; call them outside, or the net"
        " itself inside."
    )


def as_dtype(name: str, array: jax.Array | np.ndarray, dtype: Any) -> jax.Array | np.ndarray:
    """Return an array in another dtype; JAX's arrays lose a weak type, too.

    Raises:
      ValueError: an integer is out of the range of the new dtype.
    """
    integers = all(jnp.issubdtype(each, jnp.integer) for each in (array.dtype, dtype))
    if integers and array.size and not np.can_cast(array.dtype, dtype):
        limits, least, most = jnp.iinfo(dtype), int(array.min()), int(array.max())
        if least < limits.min or most > limits.max:
            raise ValueError(
                f"`{name}` must have integers from {limits.min} to {limits.max}, as the program"
                f" computes in {jnp.dtype(dtype).name}; got integers from {least} to {most}."
            )
    # A compiled call takes host arrays as they are: 15 µs with one image on CPU, instead of 48 µs
    # with a transfer before it.
    convert = jnp.asarray if isinstance(array, jax.Array) else np.asarray
    return convert(array, dtype)


def as_operand(name: str, value: Any) -> Any:
    """Return a host array in the dtype in which JAX takes it; other arrays as they are.

    Raises:
      ValueError: it holds no numbers; or as `as_array` and `as_dtype`.
    """
    if isinstance(value, jax.Array):
        return value
    array = as_array(name, value)
    if not (array.dtype == bool or jnp.issubdtype(array.dtype, jnp.number)):
        raise ValueError(f"`{name}` must be an array of numbers, got the dtype {array.dtype}.")
    return as_dtype(name, array, jax.dtypes.canonicalize_dtype(array.dtype))
