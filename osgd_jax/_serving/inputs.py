"""Checks of the input of a predictor."""

from typing import Any

import jax
import jax.numpy as jnp

from osgd_jax._host_arrays import as_array, as_dtype
from osgd_jax._serving.placement import alone, move
from osgd_jax._serving.stages import Input, Model
from osgd_jax.nets.tracing import check_shape


def check_input(model: Model, x: Any) -> Input:
    """Return `x` on the model's device, in a dtype that it takes; host arrays stay on the host.

    Raises:
      ValueError: `x` is traced, empty, masked, or of a dtype or shape that the model does not take.
    """
    x = as_array("x", x)
    _check_kind(model, x)
    if x.ndim == 0 or len(x) == 0 or not _suits(model, x.shape[1:]):
        raise ValueError(
            f"x of shape {x.shape} must have the shape {_describe(model, 'batch')}, with at least"
            " one example."
        )
    dtype = model.input_dtype or jax.dtypes.canonicalize_dtype(x.dtype)
    if not isinstance(x, jax.Array):
        return as_dtype("x", x, dtype)
    x = move("x", x, model.device)
    if x.dtype == dtype and not x.weak_type:
        return x
    with alone(model.device):
        return as_dtype("x", x, dtype)


def check_example_shape(model: Model, shape: Any) -> tuple[int, ...]:
    """Give the shape of one example as a tuple.

    Raises:
      ValueError: it is no shape, or not one that the model takes.
    """
    checked = check_shape("input_shape", shape)
    if not _suits(model, checked):
        raise ValueError(
            f"input_shape={checked} must be {_describe(model)}, the shape of one example."
        )
    return checked


def _check_kind(model: Model, x: Input) -> None:
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    integer = jnp.issubdtype(x.dtype, jnp.integer)
    shape = x.shape[1:]
    if integer and x.ndim > 0 and (not _suits(model, shape) or model.takes_integers(shape)):
        return
    if model.input_dtype is not None and jnp.issubdtype(model.input_dtype, jnp.integer):
        raise ValueError(f"x has the dtype {x.dtype} and must be integers, such as token ids.")
    if not floating:
        raise ValueError(
            f"x has the dtype {x.dtype} and must be floating, scaled as in training. (Integers are"
            " for nets that take no floats, such as those of token ids.)"
        )


def _suits(model: Model, shape: tuple[int, ...]) -> bool:
    wanted = model.input_shape
    return wanted is None or (
        len(shape) == len(wanted)
        and all(
            length == axis or (axis is None and length > 0)
            for length, axis in zip(shape, wanted, strict=True)
        )
    )


def _describe(model: Model, *before: str) -> str:
    wanted = model.input_shape
    if wanted is None:
        return f"[{', '.join([*before, '…'])}]"
    names = {1: ["length"], 2: ["length", "channels"], 3: ["height", "width", "channels"]}
    axes = [
        name if axis is None else str(axis)
        for name, axis in zip(names.get(len(wanted), ["length"] * len(wanted)), wanted, strict=True)
    ]
    return f"[{', '.join([*before, *axes])}]"
