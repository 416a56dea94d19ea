"""Checks of hyperparameters that may be traced."""

from typing import Any

import jax
import numpy as np
from jax.core import Tracer


def check_range(name: str, value: Any, wanted: str, holds: Any) -> None:
    """Raise a ValueError where `holds(value)` is false; a traced value is not looked at.

    Args:
      name: name of the argument.
      value: a number or several.
      wanted: what they must be, as in "tau=2 must be in [0, 1]."
      holds: from a NumPy array to booleans; false for NaN.
    """
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(value)):
        return
    if not np.all(holds(np.asarray(value, np.float64))):
        raise ValueError(f"{name}={value!r} must be {wanted}.")


def check_decay(decay: Any) -> None:
    """Raise a ValueError unless the decay of a running mean is in [0, 1)."""
    check_range("decay", decay, "at least 0 and below 1", lambda d: (d >= 0) & (d < 1))
