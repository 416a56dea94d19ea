"""A net run on shapes alone, from the input to each output."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from osgd_jax._validation import check_positive

ResultT = TypeVar("ResultT")


def check_net(net: Any) -> None:
    """Raise a ValueError unless `net` is a module that can be run output by output."""
    wanted = "; it must be an nnx.Module with num_outputs, start and advance, as an AnytimeNet is."
    for name in ("num_outputs", "start", "advance"):
        if not hasattr(net, name):
            raise ValueError(f"net is a {type(net).__name__} without {name}{wanted}")
    check_positive("net.num_outputs", net.num_outputs)
    if not isinstance(net, nnx.Module):
        raise ValueError(f"net is a {type(net).__name__} and no module{wanted}")


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Give the shape of one example as a tuple of `int`.

    Raises:
      ValueError: it is no sequence of integers of at least one.
    """
    try:
        axes = tuple(shape)
    except TypeError:
        raise ValueError(
            f"{name}={shape!r} must be a sequence, the shape of one example, such as (32, 32, 3)."
        ) from None
    return tuple(check_positive(f"{name}[{i}]", axis) for i, axis in enumerate(axes))


def steps(net: Any, x: jax.Array) -> list[tuple[Any, Any]]:
    """Return the logits of each output, and the carry after it."""
    carry, taken = net.start(x), []
    for k in range(net.num_outputs):
        logits, carry = net.advance(k, carry)
        taken.append((logits, carry))
    return taken


def with_example(
    trace: Callable[[jax.ShapeDtypeStruct], ResultT], input_shape: tuple[int, ...], dtype: Any
) -> ResultT:
    """Give `trace(x)` for one example of a shape.

    Args:
      trace: traces the net.
      input_shape: without the batch axis.
      dtype: of the example; None for floats, or integers where the net takes no floats.
    """
    example = lambda kind: jax.ShapeDtypeStruct((1, *input_shape), jnp.result_type(kind))  # noqa: E731
    if dtype is not None:
        try:
            x = example(dtype)
        except TypeError:
            raise ValueError(f"dtype={dtype!r} must be a dtype, such as jnp.int32.") from None
        return trace(x)
    try:
        return trace(example(float))
    except (TypeError, ValueError) as refusal:
        try:
            return trace(example(int))
        except (TypeError, ValueError):
            raise refusal from None


def find_dtype(net: Any, input_shape: tuple[int, ...]) -> jnp.dtype:
    """Give the dtype of an input: floating, or integer where the net takes no floats."""

    def trace(x: jax.ShapeDtypeStruct) -> jnp.dtype:
        graphdef, state = nnx.split(net)

        def run(state: Any, x: jax.Array) -> Any:
            merged = nnx.merge(graphdef, state, copy=True)
            return merged.advance(0, merged.start(x))

        jax.eval_shape(run, state, x)
        return x.dtype

    return with_example(trace, input_shape, None)
