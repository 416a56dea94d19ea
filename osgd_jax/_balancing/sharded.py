"""Task gradients split over the devices of a mesh axis, inside `jax.shard_map`.

To sum one gradient over the devices, as a step of plain SGD does, moves as many bytes as to
reduce-scatter it and to all-gather the sum. Here every row is reduce-scattered, the Gramian is the
sum of those of the shares, so that all devices have the same weights, and the weighted sum alone is
all-gathered: (K + 1) / 2 times the bytes of SGD, less where not all losses reach all parameters.
Rows that are too short for it are summed whole, as `jax.jit` alone would do.

Without an `axis_name`, or with one without axes, all functions here return their arguments
unchanged.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from osgd_jax._gradients.rows import ArrayTree, TaskRows

AxisName = str | tuple[str, ...]

# Shares are `[n, 128]`, with as many rows as fill tiles of this size.
_LANES = 128
_TILE_BYTES = 32 * _LANES * 4


def check(leaves: Sequence[TaskRows], axis_name: AxisName | None) -> None:
    """Raise a ValueError for gradients of each device alone, unless `axis_name` says that they are.

    The same holds for gradients that were summed over the devices, if `axis_name` says that they
    were not. An `axis_name` without axes, `()`, says that they were averaged.
    """
    if axis_name:
        check_varying([leaf.rows for leaf in leaves], axis_name)
        return
    check_same(leaves, "average them first, by jax.lax.pmean, or pass axis_name={axis}")
    axes = _unchecked_axes()
    if axis_name is None and axes:
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


def average(gradients: ArrayTree, axis_name: AxisName | None) -> ArrayTree:
    """Average gradients over the devices."""
    if not axis_name:
        return gradients
    check_varying(jax.tree.leaves(gradients), axis_name)
    return lax.pmean(gradients, axis_name)


def scatter(leaf: TaskRows, axis_name: AxisName | None) -> TaskRows:
    """Average rows over the devices; each keeps an equal share of each, `[tasks, *share]`.

    Where `copies` tells so, each keeps all of them.
    """
    if not axis_name or leaf.rows.size == 0:
        return leaf
    # Row by row, so that none has to wait in full size for the pullbacks of the other losses.
    rows = [leaf.rows[i] for i in range(len(leaf.tasks))]
    if copies(leaf, axis_name) > 1:
        return dataclasses.replace(
            leaf, rows=jnp.stack([lax.pmean(row, axis_name) for row in rows])
        )
    padding = (0, _padding(leaf, axis_name))
    tiles = [jnp.pad(row.ravel(), padding).reshape(-1, _LANES) for row in rows]
    # Axis by axis: of an axis of 16 devices, compilers for TPU make a whole all-reduce, which moves
    # twice as many bytes.
    for axis in _axes(axis_name):
        tiles = [lax.psum_scatter(each, axis, tiled=True) for each in tiles]
    return dataclasses.replace(leaf, rows=jnp.stack(tiles) / lax.axis_size(axis_name))


def gather(combined: jax.Array, leaf: TaskRows, axis_name: AxisName | None) -> jax.Array:
    """Put the shares of one update together, in the shape of the parameter that `leaf` is for."""
    shape = leaf.rows.shape[1:]
    if not axis_name or copies(leaf, axis_name) > 1:
        return combined
    if leaf.rows.size == 0:
        return jnp.zeros(shape, combined.dtype)
    for axis in reversed(_axes(axis_name)):
        combined = lax.all_gather(combined, axis, tiled=True, to="invarying")
    return combined.ravel()[: math.prod(shape)].reshape(shape)


def copies(leaf: TaskRows, axis_name: AxisName | None) -> int:
    """Count the devices that hold the same of these rows after `scatter`: one, or all.

    All, where what is added to fill the tiles would be more than what is saved, as it always is for
    a single row: an all-reduce is a reduce-scatter and an all-gather.
    """
    if not axis_name or leaf.rows.size == 0:
        return 1
    count, size = len(leaf.tasks), math.prod(leaf.rows.shape[1:])
    saves = (count + 1) * (size + _padding(leaf, axis_name)) < 2 * count * size
    return 1 if saves else lax.axis_size(axis_name)


def is_padded_much(leaf: TaskRows, axis_name: AxisName | None) -> bool:
    """Tell whether rows are best scattered together with those of other arrays."""
    if not axis_name or len(leaf.tasks) < 2:
        return False
    return _padding(leaf, axis_name) > math.prod(leaf.rows.shape[1:]) / 16


def _padding(leaf: TaskRows, axis_name: AxisName) -> int:
    # Compilers for TPU make a whole all-reduce, of twice as many bytes, of what does not come in
    # such tiles.
    tile = _TILE_BYTES // leaf.rows.dtype.itemsize
    return -math.prod(leaf.rows.shape[1:]) % (tile * lax.axis_size(axis_name))


def total(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Add up over the devices."""
    return lax.psum(values, axis_name) if axis_name else values


def largest(values: jax.Array, axis_name: AxisName | None) -> jax.Array:
    """Take the maximum over the devices of values >= 0, where a NaN counts as infinity."""
    if not axis_name:
        return values
    # A maximum over GPUs may pass over a NaN, never over an infinity.
    return lax.pmax(jnp.where(jnp.isnan(values), jnp.inf, values), axis_name)


def _axes(axis_name: AxisName) -> tuple[str, ...]:
    return (axis_name,) if isinstance(axis_name, str) else axis_name


def check_varying(gradients: Sequence[jax.Array], axis_name: AxisName) -> None:
    """Raise a ValueError for gradients that are the same on all devices, as far as types tell."""
    # Under `check_vma=False` no type names any axis. A row may be constant, but not all are.
    varying = jax.typeof(lax.axis_index(axis_name)).manual_axis_type.varying
    if not any(varying <= jax.typeof(array).manual_axis_type.varying for array in gradients):
        raise ValueError(
            f"axis_name={axis_name!r}, but the gradients are the same on all its devices:"
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
