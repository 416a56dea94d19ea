"""Checks of what a predictor is given to run on."""

from typing import Any

import jax
import jax.numpy as jnp

from osgd_jax._anytime_stages import Model


def check_input(model: Model, x: Any) -> jax.Array:
    """`x` as an array of the dtype that the model takes.

    Raises:
        ValueError: `x` is not floating, empty, or of a shape that the model does not take.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be floating, scaled as in training; got {x.dtype}.")
    if x.ndim == 0 or len(x) == 0 or not _suits(model, x.shape[1:]):
        raise ValueError(
            f"x must have the shape {_describe(model, 'batch')}, with at least one example; "
            f"got {x.shape}."
        )
    # An explicit dtype strips weak types, which would need programs of their own.
    return jnp.asarray(x, model.input_dtype or x.dtype)


def check_example_shape(model: Model, shape: tuple[int, ...]) -> None:
    """Raises a ValueError unless the model takes examples of this shape."""
    if not _suits(model, shape):
        raise ValueError(
            f"input_shape must be {_describe(model)}, the shape of one example; got {shape}."
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
