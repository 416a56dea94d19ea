"""Checks of hyperparameters that may be traced."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def is_traced(value: Any) -> bool:
    """Tell whether a number, or one of several, is known only to the compiled program."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value))


def check_range(
    name: str, value: Any, wanted: str, holds: Callable[[np.ndarray], Any], most_axes: int = 0
) -> None:
    """Raise a ValueError where `holds(value)` is false; a traced value is not looked at.

    Args:
      name: name of the argument.
      value: A number, or an array of them; with an axis allowed, also a mapping to numbers.
      wanted: what they must be, as in "tau=2 must be in [0, 1]."
      holds: from a NumPy array to booleans; false for NaN.
      most_axes: how many axes the array may have.
    """
    if isinstance(value, Mapping) and most_axes:
        for path, number in jax.tree.leaves_with_path(dict(value)):
            check_range(f"{name}{jax.tree_util.keystr(path)}", number, wanted, holds)
        return
    try:
        fits = np.ndim(value) <= most_axes and (  # pyright: ignore[reportArgumentType] - caught
            is_traced(value) or bool(np.all(holds(np.asarray(value, np.float64))))
        )
    except (TypeError, ValueError):
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} must be {wanted}.")


def check_decay(decay: Any) -> None:
    """Raise a ValueError unless the decay of a running mean is in [0, 1)."""
    check_range("decay", decay, "at least 0 and below 1", lambda d: (d >= 0) & (d < 1))
