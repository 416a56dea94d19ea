"""Task gradients split over the devices of a mesh axis, inside `jax.shard_map`.

To sum one gradient over the devices, as a step of plain SGD does, moves as many bytes as to
reduce-scatter it and to all-gather the sum. Here every row is reduce-scattered, the Gramian is the
sum of those of the shares, so that all devices have the same weights, and the weighted sum alone is
all-gathered: (K + 1) / 2 times the bytes of SGD, less where not all losses reach all parameters.

Without an `axis_name` every function here leaves what it is given as it is.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax._task_rows import TaskRows

AxisName = str | tuple[str, ...]

_LANES = 128


def check(leaves: Sequence[TaskRows], axis_name: AxisName | None) -> None:
    """Raise a ValueError for gradients of each device alone, unless `axis_name` says that they are.

    So it does for those that were summed over the devices, if `axis_name` says that they were not.
    """
    if axis_name is not None:
        _check_varying(leaves, axis_name)
        return
    check_same(leaves, "average them first, by jax.lax.pmean, or pass axis_name={axis}")
    axes = _unchecked_axes()
    if axes:
        raise ValueError(
            f"the task gradients may differ between the devices of the mesh axis {_named(axes)}:"
            " inside jax.pmap, or jax.shard_map with check_vma=False, no type tells. Pass"
            f" axis_name={_argument(axes)}, which leaves gradients that were averaged as they are,"
            " or leave out check_vma=False."
        )


def check_same(leaves: Sequence[TaskRows], remedy: str) -> None:
    """Raise a ValueError for gradients that differ between devices, as far as their types tell."""
    axes = frozenset().union(*(jax.typeof(leaf.rows).manual_axis_type.varying for leaf in leaves))
    if axes:
        raise ValueError(
            f"the task gradients differ between the devices of the mesh axis {_named(axes)}, so"
            " that each device would make another update of them:"
            f" {remedy.format(axis=_argument(axes))}."
        )


def scatter(leaf: TaskRows, axis_name: AxisName | None) -> TaskRows:
    """Average rows over the devices; each keeps an equal share of each: `[tasks, *share]`."""
    if axis_name is None or leaf.rows.size == 0:
        return leaf
    num_devices = lax.axis_size(axis_name)
    size, tile = math.prod(leaf.rows.shape[1:]), _tile(leaf.rows.dtype) * num_devices
    # Compilers for TPU make a whole all-reduce of what does not come in tiles of 128 lanes.
    unit, lanes = (tile, (_LANES,)) if size >= tile else (num_devices, ())
    # Row by row, so that none has to wait in full size for the pullbacks of the other losses.
    rows = [
        jnp.pad(leaf.rows[i].ravel(), (0, -size % unit)).reshape(-1, *lanes)
        for i in range(len(leaf.tasks))
    ]
    shares = [lax.psum_scatter(row, axis_name, tiled=True) / num_devices for row in rows]
    return dataclasses.replace(leaf, rows=jnp.stack(shares))


def gather(combined: jax.Array, leaf: TaskRows, axis_name: AxisName | None) -> jax.Array:
    """Put the shares of one update together, in the shape of the parameter that `leaf` is for."""
    if axis_name is None:
        return combined
    shape = leaf.rows.shape[1:]
    if leaf.rows.size == 0:
        return jnp.zeros(shape, combined.dtype)
    whole = lax.all_gather(combined, axis_name, tiled=True, to="invarying")
    return whole.ravel()[: math.prod(shape)].reshape(shape)


def is_padded_much(size: int, dtype: Any, axis_name: AxisName | None) -> bool:
    """Tell whether shares of an array of this size are best made of several arrays together."""
    if axis_name is None:
        return False
    return -size % (_tile(dtype) * lax.axis_size(axis_name)) > size / 16


def _tile(dtype: Any) -> int:
    """Count the elements in which the memory of a TPU is laid out."""
    return 4096 // jnp.dtype(dtype).itemsize


def total(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Add up over the devices."""
    return values if axis_name is None else lax.psum(values, axis_name)


def largest(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Take the maximum over the devices of values >= 0, where a NaN counts as infinity."""
    if axis_name is None:
        return values
    # A maximum over GPUs may pass over a NaN, never over an infinity.
    return lax.pmax(jnp.where(jnp.isnan(values), jnp.inf, values), axis_name)


def _check_varying(leaves: Sequence[TaskRows], axis_name: AxisName) -> None:
    # Under `check_vma=False` no type names any axis. A row may be constant, but not all are.
    varying = jax.typeof(lax.axis_index(axis_name)).manual_axis_type.varying
    if not any(varying <= jax.typeof(leaf.rows).manual_axis_type.varying for leaf in leaves):
        raise ValueError(
            f"axis_name={axis_name!r}, but the task gradients are the same on all its devices:"
            " jax.grad sums the gradients of replicated parameters. Take each device's own, with"
            f" respect to jax.lax.pcast(params, {axis_name!r}, to='varying')."
        )


def _unchecked_axes() -> frozenset[str]:
    """Find the mesh axes over which arrays may differ without a type that tells."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = frozenset(axis for axis in mesh.manual_axes if mesh.shape[axis] > 1)
    typed = [jax.typeof(lax.axis_index(axis)).manual_axis_type.varying for axis in axes]
    return axes - frozenset().union(*typed)


def _named(axes: Iterable[str]) -> str:
    return " and ".join(repr(axis) for axis in sorted(map(str, axes)))


def _argument(axes: Iterable[str]) -> str:
    names = sorted(map(str, axes))
    return repr(names[0]) if len(names) == 1 else repr(tuple(names))
