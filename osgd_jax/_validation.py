"""Checks of arguments; each raises a ValueError that names the argument.

A traced hyperparameter cannot raise an error if it is out of range. It becomes NaN then, and so do
the weights of the method that uses it.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.tree_util import keystr

from osgd_jax._host_arrays import as_operand


def as_number(value: Any) -> float:
    """Give `value` as a float; NaN where it is not one real number."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return math.nan
    real = jnp.issubdtype(array.dtype, np.integer) or jnp.issubdtype(array.dtype, np.floating)
    return float(array) if real and array.ndim == 0 else math.nan


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise a ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        known = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name}={value!r} must be {known}.")


def check_positive(name: str, value: object) -> int:
    """Give `value`, an integer of at least one, NumPy's included, as an `int`.

    Raises:
      ValueError: it is something else.
    """
    wrong = ValueError(f"{name}={value!r} must be an integer of at least 1.")
    if isinstance(value, bool | np.bool_) or not isinstance(value, SupportsIndex):
        raise wrong
    try:
        number = value.__index__()
    except TypeError:  # an array of floats or of several numbers
        raise wrong from None
    if number < 1:
        raise wrong
    return number


def check_all_positive(name: str, values: Any) -> tuple[int, ...]:
    """Give `values`, at least one integer of at least one, as a tuple.

    Raises:
      ValueError: they are something else.
    """
    try:
        entries = tuple(values)
    except TypeError:
        entries = ()
    if not entries:
        raise ValueError(f"{name}={values!r} must be a sequence of integers, such as (2, 4).")
    return tuple(check_positive(f"{name}[{i}]", entry) for i, entry in enumerate(entries))


def check_spatial_dims(value: object) -> int:
    """Give `value`, 1 or 2, as an `int`.

    Raises:
      ValueError: it is something else.
    """
    if isinstance(value, SupportsIndex) and not isinstance(value, bool) and value in (1, 2):
        return value.__index__()
    raise ValueError(f"spatial_dims={value!r} must be 1 or 2.")


def check_bool(name: str, value: object) -> None:
    """Raise a ValueError unless `value` is True or False."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r} must be True or False.")


def check_float_dtype(name: str, value: Any) -> None:
    """Raise a ValueError unless `value` is a real floating dtype."""
    try:
        fits = jnp.issubdtype(jnp.dtype(value), jnp.floating)
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(f"{name}={value!r} must be a floating dtype, such as jnp.float32.")


def check_rngs(rngs: object) -> None:
    """Raise a ValueError unless `rngs` can give keys for parameters."""
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"rngs={rngs!r} must be an nnx.Rngs, such as nnx.Rngs(0).")
    if not hasattr(rngs, "params"):
        raise ValueError(
            f"rngs has the streams {list(rngs)} and must have 'params' or a default, as nnx.Rngs(0)"
            " has."
        )


def check_channels(shape: tuple[int, ...], channels: int) -> None:
    """Raise a ValueError unless the last axis of `x` has so many channels."""
    if shape[-1:] != (channels,):
        raise ValueError(f"x of shape {shape} must have {channels} channels in its last axis.")


def check_input(x: Any, spatial_dims: int, in_channels: int) -> Any:
    """Give `x`, `[batch, *spatial, in_channels]`, as an array that JAX takes.

    Raises:
      ValueError: it is something else.
    """
    spatial = "length" if spatial_dims == 1 else "height, width"
    wanted = f"[batch, {spatial}, {in_channels}]"
    if not hasattr(x, "shape"):
        raise ValueError(f"x={x!r:.60} must be an array of shape {wanted}.")
    if len(x.shape) != spatial_dims + 2 or x.shape[-1] != in_channels:
        raise ValueError(
            f"x of shape {x.shape} must have the shape {wanted} (spatial_dims={spatial_dims},"
            f" in_channels={in_channels}, channels last)."
        )
    return as_operand("x", x)


def flatten_like(
    tree: Any, like: Any, names: tuple[str, str], remedy: str = "", *, is_leaf: Any = None
) -> list[Any]:
    """Return what `tree` has in the place of each leaf of `like`.

    Args:
      tree: has the structure of `like`, or goes on where that has a leaf.
      like: a tree.
      names: of the two, for the error.
      remedy: the end of the error.
      is_leaf: as for `jax.tree.leaves`, of `like`.

    Raises:
      ValueError: another structure; the error names the first difference.
    """
    try:
        return jax.tree.structure(like, is_leaf=is_leaf).flatten_up_to(tree)
    except (ValueError, TypeError):
        raise structure_error(tree, like, names, remedy, is_leaf=is_leaf) from None


def structure_error(
    tree: Any, like: Any, names: tuple[str, str], remedy: str = "", *, is_leaf: Any = None
) -> ValueError:
    """Return the error for a tree without the structure of another, as `flatten_like` raises it."""
    expected = [path for path, _ in jax.tree.leaves_with_path(like, is_leaf=is_leaf)]
    # Where `like` has a leaf, `tree` may have a tree.
    actual = dict.fromkeys(
        next((known for known in expected if path[: len(known)] == known), path)
        for path, _ in jax.tree.leaves_with_path(tree, is_leaf=is_leaf or (lambda x: x is None))
    )
    difference = "the leaves are at the same places, but in containers of other types"
    for place, other in itertools.zip_longest(expected, actual):
        if place != other:
            other = other and other[: len(place or other)]
            shown = ["nothing" if p is None else keystr(p) or "a leaf" for p in (place, other)]
            difference = (
                f"the first difference is {shown[0]} in {names[1]}, {shown[1]} in {names[0]}"
            )
            break
    end = f" {remedy}" if remedy else ""
    return ValueError(f"{names[0]} must have the structure of {names[1]}; {difference}.{end}")


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
            lambda path, number: check_range(f"{name}{keystr(path)}", number, wanted, holds),
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


def unless_out_of_range(weights: jax.Array, *checked: Any) -> jax.Array:
    """Return the weights; NaN where a traced number that `check_range` returned is NaN.

    For numbers whose NaN a method would not let through.
    """
    for value in filter(is_traced, checked):
        weights = jnp.where(jnp.any(jnp.isnan(value)), jnp.nan, weights)
    return weights
