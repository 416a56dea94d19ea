"""Groups of parameters that are balanced together."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osgd_jax._balancing.sharded import AxisName
from osgd_jax._gradients.rows import (
    ArrayTree,
    TaskRows,
    accumulation_dtype,
    is_task_rows,
    max_abs,
    of_all_tasks,
)
from osgd_jax._validation import flatten_like

Scope = str | ArrayTree | Callable[[ArrayTree], ArrayTree]

NAMED_SCOPES = ("shared", "all", "leaf", "reach")


class OfTasks(Protocol):
    """A `TaskRows` or a block of parameters, which some of the K tasks reach."""

    @property
    def tasks(self) -> tuple[int, ...]:
        """Indices of these tasks, ascending."""
        ...

    @property
    def num_tasks(self) -> int:
        """The number of all tasks, K."""
        ...


class Groups(NamedTuple):
    """The partition of L parameter arrays into groups that are balanced together.

    What is known at trace time is a NumPy array or a Python boolean; what follows from which
    gradients are zero is a JAX array.

    Attributes:
      ids: group of each array, `[L]` integers below `num_groups`.
      private: for each array, whether it keeps its own gradient and belongs to no group.
      num_groups: number of groups.
    """

    ids: np.ndarray | jax.Array
    private: list[Any]
    num_groups: int

    def at(self, indices: Sequence[int]) -> "Groups":
        """Return the groups of some of the arrays."""
        private = [self.private[i] for i in indices]
        return Groups(self.ids[np.array(indices, int)], private, self.num_groups)

    def labels(self) -> list[int | None]:
        """Name the group of each array; None where it is none, or not known at trace time."""
        if isinstance(self.ids, jax.Array):
            return [None] * len(self.private)
        return [
            int(group) if private is False else None
            for group, private in zip(self.ids, self.private, strict=True)
        ]

    def sum(
        self, values: Sequence[jax.Array], leaves: Sequence[OfTasks] | None = None
    ) -> jax.Array:
        """Add up one array for each parameter by group: `[num_groups, ...]`.

        Args:
          values: of the same shape, or with `leaves` each over the tasks of its leaf.
          leaves: what the values are of.
        """
        return self._reduce(values, leaves, jnp.sum, jax.ops.segment_sum)

    def max(
        self, values: Sequence[jax.Array], leaves: Sequence[OfTasks] | None = None
    ) -> jax.Array:
        """Take the elementwise maximum of one non-negative array for each parameter by group."""
        return self._reduce(values, leaves, jnp.max, _segment_max)

    def of_each(self, values: jax.Array) -> list[jax.Array]:
        """Return the value of each parameter's group, from one for each group."""
        return [values[group] for group in self.ids]

    def select(self, private: Sequence[jax.Array], shared: Sequence[jax.Array]) -> list[jax.Array]:
        """Return for each parameter the first value where it is private, else the second."""
        return [
            (own if known else other) if isinstance(known, bool) else jnp.where(known, own, other)
            for known, own, other in zip(self.private, private, shared, strict=True)
        ]

    def _reduce(
        self,
        values: Sequence[jax.Array],
        leaves: Sequence[OfTasks] | None,
        reduce: Callable,
        by_segment: Callable,
    ) -> jax.Array:
        reach = (
            [(leaf.tasks, leaf.num_tasks) for leaf in leaves] if leaves else [None] * len(values)
        )
        if isinstance(self.ids, jax.Array):
            stacked = jnp.stack([_filled(*each) for each in zip(values, reach, strict=True)])
            return by_segment(stacked, self.ids, num_segments=self.num_groups)
        groups = []
        for group in range(self.num_groups):
            # Each group is stacked separately, so that nothing is computed for private arrays;
            # arrays of the same tasks are reduced before they are padded to K.
            alike: dict[Any, list[jax.Array]] = {}
            for i in np.flatnonzero(self.ids == group).tolist():
                if self.private[i] is False:
                    alike.setdefault(reach[i], []).append(values[i])
                elif self.private[i] is not True:
                    shared = jnp.where(self.private[i], 0, values[i])
                    alike.setdefault(reach[i], []).append(shared)
            parts = [_filled(reduce(jnp.stack(v), axis=0), key) for key, v in alike.items()]
            groups.append(reduce(jnp.stack(parts), axis=0))
        return jnp.stack(groups)


def _segment_max(values: jax.Array, ids: jax.Array, num_segments: int) -> jax.Array:
    # `jax.ops.segment_max` gives -inf to a group that no array belongs to.
    return jnp.zeros((num_segments, *values.shape[1:]), values.dtype).at[ids].max(values)


def one_group(leaves: Sequence[OfTasks]) -> Groups:
    """Make one group of all arrays."""
    return Groups(np.zeros(len(leaves), int), [False] * len(leaves), 1)


def _filled(values: jax.Array, reach: tuple[tuple[int, ...], int] | None) -> jax.Array:
    return values if reach is None else of_all_tasks(values, *reach)


def group(
    scope: Scope,
    leaves: list[TaskRows],
    grads: ArrayTree,
    params: ArrayTree | None,
    axis_name: AxisName | None = None,
) -> Groups:
    """Partition the leaves of `grads`, split over the devices of an axis or not, as the scope says.

    Raises:
      ValueError: an unknown scope, labels that do not fit the tree, or a callable scope without
        params.
    """
    if not isinstance(scope, str):
        return _group_by_label(_labels(scope, grads, params))
    check_name(scope)
    if scope == "all":
        return one_group(leaves)
    if scope == "leaf":
        return _group_by_label(range(len(leaves)))
    reach = _reach_masks(leaves, axis_name)
    if scope == "shared":
        private = [bool(r.sum() < 2) if isinstance(r, np.ndarray) else r.sum() < 2 for r in reach]
        everybody_private = all(each is True for each in private)
        return Groups(np.zeros(len(leaves), int), private, 0 if everybody_private else 1)
    if all(isinstance(mask, np.ndarray) for mask in reach):
        return _group_by_label([tuple(mask.tolist()) for mask in reach])
    masks = jnp.stack(reach)
    same = (masks[:, None] == masks[None]).all(axis=-1)
    return Groups(jnp.argmax(same, axis=1), [False] * len(leaves), len(leaves))


def check_name(scope: Scope) -> None:
    """Raise a ValueError for a string that names no scope."""
    if isinstance(scope, str) and scope not in NAMED_SCOPES:
        raise ValueError(
            f"scope={scope!r} is unknown; use one of {', '.join(map(repr, NAMED_SCOPES))}, a tree"
            " of labels with the structure of the parameters, or a function from the parameters to"
            " such a tree."
        )


def _reach_masks(
    leaves: list[TaskRows], axis_name: AxisName | None
) -> list[np.ndarray | jax.Array]:
    """Tell which tasks reach each leaf, `[K]` booleans: those with a row that is not zero.

    Analysis can take a task for one that reaches a leaf, where a matrix product or a loop mixes
    the losses. Only where it leaves no two tasks does it decide alone.
    """
    masks: list[Any] = [np.isin(np.arange(leaf.num_tasks), leaf.tasks) for leaf in leaves]
    unsure = [i for i, leaf in enumerate(leaves) if len(leaf.tasks) > 1]
    if not unsure:
        return masks
    # The same maxima as the row scales are made of, so that the compiler takes them once: one pass
    # over the rows instead of two.
    dtype = accumulation_dtype(leaves)
    largest = [max_abs(leaves[i], dtype) != 0 for i in unsure]
    reached = [
        _filled(m, (leaves[i].tasks, leaves[i].num_tasks))
        for i, m in zip(unsure, largest, strict=True)
    ]
    if axis_name:
        counts = lax.psum([mask.astype(int) for mask in reached], axis_name)
        reached = [count > 0 for count in counts]
    for i, mask in zip(unsure, reached, strict=True):
        masks[i] = mask
    return masks


def _labels(scope: Any, grads: ArrayTree, params: ArrayTree | None) -> list[Hashable]:
    if callable(scope):
        if params is None:
            raise ValueError(
                "a scope that is a function of the parameters needs them: call"
                " update(grads, state, params)."
            )
        scope = scope(params)
    remedy = "For an nnx.State too, jax.tree.map(label_of, params) makes labels that fit."
    names = "the labels given as scope", "the parameters"
    return flatten_like(scope, grads, names, remedy, is_leaf=is_task_rows)


def _group_by_label(labels: Sequence[Hashable]) -> Groups:
    for label in labels:
        try:
            hash(label)
        except TypeError:
            raise ValueError(
                f"a label given as scope is {label!r}, of type {type(label).__name__}; labels must"
                " be hashable, such as strings or integers."
            ) from None
    ids = {label: index for index, label in enumerate(dict.fromkeys(labels))}
    return Groups(np.array([ids[label] for label in labels], int), [False] * len(labels), len(ids))
