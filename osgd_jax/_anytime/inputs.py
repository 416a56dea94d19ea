"""Checks of what a predictor is given to run on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._anytime.stages import Input, Model


def check_input(model: Model, x: Any) -> Input:
    """`x` as an array of the dtype that the model takes; what is on the host stays there.

    Raises:
      ValueError: `x` is not floating, empty, or of a shape that the model does not take.
    """
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x has the dtype {x.dtype} and must be floating, scaled as in training.")
    if x.ndim == 0 or len(x) == 0 or not _suits(model, x.shape[1:]):
        raise ValueError(
            f"x of shape {x.shape} must have the shape {_describe(model, 'batch')}, with at least"
            " one example."
        )
    dtype = model.input_dtype or jax.dtypes.canonicalize_dtype(x.dtype)
    if isinstance(x, jax.Array):
        return jnp.asarray(x, dtype)  # strips a weak type, which would need programs of its own
    # A compiled call takes host arrays as they are, faster than a transfer before it.
    return np.asarray(x, dtype)


def check_example_shape(model: Model, shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the model takes examples of this shape."""
    if not _suits(model, shape):
        raise ValueError(
            f"input_shape={shape} must be {_describe(model)}, the shape of one example."
        )


def _suits(model: Model, shape: tuple[int, ...]) -> bool:
    wanted = model.input_shape
    return len(shape) == len(wanted) and all(
        length == axis or (axis is None and length > 0)
        for length, axis in zip(shape, wanted, strict=True)
    )


def _describe(model: Model, *before: str) -> str:
    spatial = ["length"] if len(model.input_shape) == 2 else ["height", "width"]
    names = [
        name if axis is None else str(axis)
        for name, axis in zip([*spatial, "channels"], model.input_shape, strict=True)
    ]
    return f"[{', '.join([*before, *names])}]"
