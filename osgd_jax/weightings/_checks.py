"""Checks of hyperparameters that may be traced.

A number that is known raises a ValueError where it is out of range. One that is traced becomes NaN
there, and with it the weights of a method that uses it.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Tell whether a number, or one of several, is known only to the compiled program."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def check_range(
    name: str, value: Any, wanted: str, holds: Callable[[Any], Any], most_axes: int = 0
) -> Any:
    """Check that a number is in a range.

    Args:
      name: name of the argument.
      value: A number, or an array of them; with an axis allowed, also a mapping to numbers.
      wanted: what they must be, as in "tau=2 must be in [0, 1]."
      holds: from a NumPy or JAX array to booleans; false for NaN.
      most_axes: how many axes the array may have.

    Returns:
      The value; as an array with NaN for each number out of range where it is traced.

    Raises:
      ValueError: a number that is known and out of range, or another number of axes.
    """
    if isinstance(value, Mapping) and most_axes:
        return jax.tree_util.tree_map_with_path(
            lambda path, number: check_range(
                f"{name}{jax.tree_util.keystr(path)}", number, wanted, holds
            ),
            dict(value),
        )
    traced = is_traced(value)
    array: Any = None
    try:
        array = jnp.asarray(value) if traced else np.asarray(value, np.float64)
        fits = array.ndim <= most_axes and (traced or bool(np.all(holds(array))))
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} must be {wanted}.")
    if not traced:
        return value
    numbers = array if jnp.issubdtype(array.dtype, jnp.inexact) else array.astype(float)
    return jnp.where(holds(array), numbers, jnp.nan)


def check_decay(decay: Any, name: str = "decay") -> Any:
    """Check that the decay of a running mean is in [0, 1), as `check_range`."""
    return check_range(name, decay, "at least 0 and below 1", lambda d: (d >= 0) & (d < 1))


def check_count(name: str, value: Any) -> int:
    """Return a number of tasks or the like as a Python integer.

    Raises:
      ValueError: no integer, one below 1, or a traced one.
    """
    try:
        count = operator.index(value)
    except TypeError:  # also for a traced number
        count = 0
    if count < 1:
        raise ValueError(f"{name}={value!r} must be a Python integer of at least 1.")
    return count


def unless_out_of_range(weights: jax.Array, *checked: Any) -> jax.Array:
    """Return the weights; NaN where a traced number that `check_range` returned is NaN.

    For numbers whose NaN a method would not let through.
    """
    for value in filter(is_traced, checked):
        weights = jnp.where(jnp.any(jnp.isnan(value)), jnp.nan, weights)
    return weights
