"""Small parameter arrays side by side in one buffer.

Biases and norms are most of the arrays of a net and next to nothing of its size. One by one, each
costs the compiler as much as a large kernel does.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from osgd_jax._balancing import sharded
from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import TaskRows

# Arrays of up to this many elements are copied into a buffer; larger ones stay where they are.
_SMALL = 4096


class Blocks(NamedTuple):
    """Task gradients in fewer arrays than there are parameters.

    Attributes:
      rows: each of one parameter as it is, or of several small ones, flat: `[tasks, elements]`.
      members: for each of these, the indices of its parameters.
    """

    rows: list[TaskRows]
    members: list[list[int]]


def merge(
    leaves: Sequence[TaskRows], labels: Sequence[Hashable], axis_name: AxisName | None = None
) -> Blocks:
    """Put small arrays of one label into one buffer, where the same tasks reach them.

    Args:
      leaves: task gradients of each parameter.
      labels: one for each; None for a parameter that must stay by itself.
      axis_name: mesh axis over whose devices the rows will be scattered.
    """
    buffers: dict[Hashable, list[int]] = {}
    for index, (leaf, label) in enumerate(zip(leaves, labels, strict=True)):
        key = index if label is None else _buffer_of(leaf, label, axis_name)
        buffers.setdefault(index if key is None else key, []).append(index)
    members = list(buffers.values())
    return Blocks([_together([leaves[i] for i in each]) for each in members], members)


def split(arrays: Sequence[jax.Array], blocks: Blocks, leaves: Sequence[TaskRows]) -> list:
    """Give each parameter its part, in its shape, of one array for each block."""
    parts: dict[int, jax.Array] = {}
    for array, members in zip(arrays, blocks.members, strict=True):
        if len(members) == 1:
            parts[members[0]] = array
            continue
        start = 0
        for index in members:
            shape, size = _shape(leaves[index]), _size(leaves[index])
            parts[index] = array[start : start + size].reshape(shape)
            start += size
    return [parts[index] for index in range(len(leaves))]


def spread(values: Sequence[jax.Array], blocks: Blocks) -> list[jax.Array]:
    """Give each parameter the value of its block."""
    of_parameter = {
        index: value
        for value, members in zip(values, blocks.members, strict=True)
        for index in members
    }
    return [of_parameter[index] for index in range(len(of_parameter))]


def _buffer_of(leaf: TaskRows, label: Hashable, axis_name: AxisName | None) -> Hashable:
    """Name the buffer that an array goes into; None for one that stays by itself."""
    kind = jax.typeof(leaf.rows)
    is_large = _size(leaf) > _SMALL
    if is_large and not sharded.is_padded_much(leaf, axis_name):
        return None
    # A buffer would gather an array that is sharded over devices.
    if any(kind.sharding.spec):
        return None
    return label, leaf.tasks, kind.dtype, kind.manual_axis_type


def _together(leaves: list[TaskRows]) -> TaskRows:
    if len(leaves) == 1:
        return leaves[0]
    flat = [leaf.rows.reshape(len(leaf.tasks), _size(leaf)) for leaf in leaves]
    return dataclasses.replace(leaves[0], rows=jnp.concatenate(flat, axis=1))


def _shape(leaf: TaskRows) -> tuple[int, ...]:
    return leaf.rows.shape[1:]


def _size(leaf: TaskRows) -> int:
    return math.prod(_shape(leaf))
