"""Blocks of parameters that get the same weights: one array, or several small ones in one buffer.

Biases and norms are most of the arrays of a net and next to nothing of its size. One by one, each
costs the compiler as much as a large kernel does: side by side, the update of 100 small arrays
compiles in 0.6 s instead of 1.2 s on 2 CPU cores.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from osgd_jax._balancing import sharded
from osgd_jax._balancing.gramian_kernels import combine_leaf, leaf_gramian
from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import TaskRows, max_abs

# Arrays of up to this many elements are copied into a buffer; larger ones stay where they are.
_SMALL = 4096


@dataclasses.dataclass(frozen=True)
class Block:
    """Task gradients of one parameter, or of several small ones side by side.

    Attributes:
      members: indices of the parameters.
      leaves: for each of them, its task gradients in each batch; there are one or two batches.
      whole: in each batch, the rows of all members: of one parameter as they are, of several flat,
        `[tasks, elements]`.
      rows: the same; inside `jax.shard_map`, the share that this device keeps of their mean.
      axis_name: mesh axis over whose devices the rows are scattered.
    """

    members: tuple[int, ...]
    leaves: tuple[tuple[TaskRows, ...], ...]
    whole: tuple[TaskRows, ...]
    rows: tuple[TaskRows, ...]
    axis_name: AxisName | None

    @property
    def tasks(self) -> tuple[int, ...]:
        """Indices of the losses that the rows belong to."""
        return self.whole[0].tasks

    @property
    def num_tasks(self) -> int:
        """The number of losses, K."""
        return self.whole[0].num_tasks

    def largest(self, dtype: Any) -> jax.Array:
        """Find the largest magnitude in the rows of each task, `[tasks]`."""
        return functools.reduce(jnp.maximum, [max_abs(rows, dtype) for rows in self.rows])

    def gramian(self, scales: jax.Array) -> jax.Array:
        """Compute the Gramian `[tasks, tasks]` of the rows over the scales `[K]`.

        Summed over the devices of the mesh axis, it is that of the whole rows.
        """
        copies = sharded.copies(self.whole[0], self.axis_name)
        products = leaf_gramian(scales, *self.rows)
        return products if copies == 1 else products / copies

    def combine(self, weights: jax.Array) -> dict[int, jax.Array]:
        """Add up the rows with the weights `[K]`; give each member its part of the mean."""
        if not self.axis_name:
            # On 2 CPU cores, cutting a combined buffer of 100 arrays up takes 2.6 s to compile,
            # combining its parts 0.6 s.
            parts = [_combine(batches, weights) for batches in self.leaves]
            return dict(zip(self.members, parts, strict=True))
        combined = _combine(self.rows, weights)
        combined = sharded.gather(combined, self.whole[0], self.axis_name)
        if len(self.members) == 1:
            return {self.members[0]: combined}
        first_of_each = [leaf for leaf, *_ in self.leaves]
        ends = itertools.accumulate(map(_size, first_of_each[:-1]))
        parts = jnp.split(combined, list(ends))
        return {
            member: part.reshape(_shape(leaf))
            for member, part, leaf in zip(self.members, parts, first_of_each, strict=True)
        }


def merge(
    batches: Sequence[Sequence[TaskRows]],
    labels: Sequence[Hashable] | None = None,
    axis_name: AxisName | None = None,
) -> list[Block]:
    """Put small arrays of one label into one block, where the same tasks reach them.

    Args:
      batches: for one batch or two, task gradients of each parameter, of the same tasks.
      labels: one for each parameter; None for one that must stay alone. Without them, all may be
        together.
      axis_name: mesh axis over whose devices the rows are scattered.
    """
    parameters = list(zip(*batches, strict=True))
    labels = [0] * len(parameters) if labels is None else labels
    members: dict[Hashable, list[int]] = {}
    for index, (leaves, label) in enumerate(zip(parameters, labels, strict=True)):
        buffer = _buffer_of(leaves, label, axis_name)
        members.setdefault(index if buffer is None else buffer, []).append(index)
    return [
        _block(each, [parameters[index] for index in each], axis_name) for each in members.values()
    ]


def combine_blocks(blocks: Sequence[Block], weights: Sequence[jax.Array]) -> list[jax.Array]:
    """Return the update of each parameter, from the weights `[K]` of each block."""
    combined: dict[int, jax.Array] = {}
    for block, weights_of_block in zip(blocks, weights, strict=True):
        combined |= block.combine(weights_of_block)
    return [combined[index] for index in range(len(combined))]


def _buffer_of(
    leaves: Sequence[TaskRows], label: Hashable, axis_name: AxisName | None
) -> Hashable | None:
    """Name the buffer that an array goes into; None for one that stays alone."""
    is_large = _size(leaves[0]) > _SMALL
    if label is None or (is_large and not sharded.is_padded_much(leaves[0], axis_name)):
        return None
    kinds = [jax.typeof(leaf.rows) for leaf in leaves]
    # A buffer would gather an array that is sharded over devices.
    if any(any(kind.sharding.spec) for kind in kinds):
        return None
    return (label, leaves[0].tasks, *((kind.dtype, kind.manual_axis_type) for kind in kinds))


def _block(
    members: Sequence[int], leaves: Sequence[tuple[TaskRows, ...]], axis_name: AxisName | None
) -> Block:
    whole = tuple(map(_together, zip(*leaves, strict=True)))
    rows = tuple(sharded.scatter(each, axis_name) for each in whole)
    return Block(tuple(members), tuple(leaves), whole, rows, axis_name)


def _together(leaves: Sequence[TaskRows]) -> TaskRows:
    if len(leaves) == 1:
        return leaves[0]
    flat = [leaf.rows.reshape(len(leaf.tasks), _size(leaf)) for leaf in leaves]
    return dataclasses.replace(leaves[0], rows=jnp.concatenate(flat, axis=1))


def _combine(batches: Sequence[TaskRows], weights: jax.Array) -> jax.Array:
    """Add up the rows of one batch, or take the mean of the sums of two."""
    first, *others = [combine_leaf(rows, weights) for rows in batches]
    return 0.5 * first + 0.5 * others[0] if others else first


def _shape(leaf: TaskRows) -> tuple[int, ...]:
    return leaf.rows.shape[1:]


def _size(leaf: TaskRows) -> int:
    return math.prod(_shape(leaf))
