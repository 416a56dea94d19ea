"""Which parameters take part in the balancing, and together with which others."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from osgd_jax._data_parallel import AxisName
from osgd_jax._task_rows import ArrayTree, TaskRows, is_task_rows, of_all_tasks

Scope = str | ArrayTree | Callable[[ArrayTree], ArrayTree]

NAMED_SCOPES = ("shared", "all", "leaf", "reach")


class Groups(NamedTuple):
    """The partition of L parameter arrays into groups that are balanced together.

    NumPy arrays where it is known at trace time, JAX arrays where it follows from which dense
    gradients are zero.

    Attributes:
      ids: group of each array, `[L]` integers below `num_groups`.
      private: arrays that keep their own gradient and belong to no group, `[L]` booleans.
      num_groups: number of groups.
    """

    ids: np.ndarray | jax.Array
    private: np.ndarray | jax.Array
    num_groups: int

    @property
    def is_static(self) -> bool:
        """Tell whether the groups are known at trace time."""
        return isinstance(self.ids, np.ndarray) and isinstance(self.private, np.ndarray)

    def at(self, indices: Sequence[int]) -> "Groups":
        """Return the groups of some of the arrays."""
        chosen = np.array(indices, int)
        return Groups(self.ids[chosen], self.private[chosen], self.num_groups)

    def labels(self) -> list[int | None]:
        """Name the group of each array; None where it is none, or not known at trace time."""
        if not self.is_static:
            return [None] * len(self.ids)
        return [
            None if private else int(group)
            for group, private in zip(self.ids, self.private, strict=True)
        ]

    def sum(
        self, values: Sequence[jax.Array], leaves: Sequence[TaskRows] | None = None
    ) -> jax.Array:
        """Add up one array for each parameter by group: `[num_groups, ...]`.

        Args:
          values: of the same shape, or with `leaves` each over the tasks of its leaf.
          leaves: the parameters' task gradients.
        """
        return self._reduce(values, leaves, jnp.sum, jax.ops.segment_sum)

    def max(
        self, values: Sequence[jax.Array], leaves: Sequence[TaskRows] | None = None
    ) -> jax.Array:
        """Elementwise maximum of one non-negative array for each parameter by group."""
        return self._reduce(values, leaves, jnp.max, _segment_max)

    def _reduce(
        self,
        values: Sequence[jax.Array],
        leaves: Sequence[TaskRows] | None,
        reduce: Callable,
        by_segment: Callable,
    ) -> jax.Array:
        reach = (
            [(leaf.tasks, leaf.num_tasks) for leaf in leaves] if leaves else [None] * len(values)
        )
        if self.is_static:
            groups = []
            for group in range(self.num_groups):
                # Each group stacked by itself, so that nothing is computed for private arrays; what
                # the same tasks reach is reduced before it is filled up.
                alike: dict[Any, list[jax.Array]] = {}
                for i in np.flatnonzero((self.ids == group) & ~self.private).tolist():
                    alike.setdefault(reach[i], []).append(values[i])
                parts = [_filled(reduce(jnp.stack(v), axis=0), key) for key, v in alike.items()]
                groups.append(reduce(jnp.stack(parts), axis=0))
            return jnp.stack(groups)
        stacked = jnp.stack([_filled(*each) for each in zip(values, reach, strict=True)])
        private = jnp.asarray(self.private).reshape(-1, *[1] * (stacked.ndim - 1))
        return by_segment(jnp.where(private, 0, stacked), self.ids, num_segments=self.num_groups)


def _segment_max(values: jax.Array, ids: jax.Array, num_segments: int) -> jax.Array:
    # `jax.ops.segment_max` gives -inf to a group that no array belongs to.
    return jnp.zeros((num_segments, *values.shape[1:]), values.dtype).at[ids].max(values)


def one_group(leaves: Sequence[TaskRows]) -> Groups:
    """Make one group of all arrays."""
    return Groups(np.zeros(len(leaves), int), np.zeros(len(leaves), bool), 1)


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
    nobody = np.zeros(len(leaves), bool)
    if isinstance(scope, str):
        check_name(scope)
        if scope == "all":
            return one_group(leaves)
        if scope == "leaf":
            return Groups(np.arange(len(leaves)), nobody, len(leaves))
        reach = _reach_masks(leaves, grads, axis_name)
        if scope == "shared":
            private = reach.sum(axis=1) < 2
            everybody_private = isinstance(private, np.ndarray) and private.all()
            return Groups(np.zeros(len(leaves), int), private, 0 if everybody_private else 1)
        if isinstance(reach, np.ndarray):
            return _group_by_label([tuple(mask) for mask in reach])
        same = (reach[:, None] == reach[None]).all(axis=-1)
        return Groups(jnp.argmax(same, axis=1), nobody, len(leaves))
    return _group_by_label(_labels(scope, grads, params))


def check_name(scope: Scope) -> None:
    """Raise a ValueError for a string that names no scope."""
    if isinstance(scope, str) and scope not in NAMED_SCOPES:
        raise ValueError(
            f"scope={scope!r} is unknown; use one of {', '.join(map(repr, NAMED_SCOPES))}, a tree"
            " of labels with the structure of the parameters, or a function from the parameters to"
            " such a tree."
        )


def _reach_masks(
    leaves: list[TaskRows], grads: ArrayTree, axis_name: AxisName | None
) -> np.ndarray | jax.Array:
    """Tell which tasks reach each leaf, `[L, K]`: those with rows, or with dense rows not zero."""
    dense = [not is_task_rows(leaf) for leaf in jax.tree.leaves(grads, is_leaf=is_task_rows)]
    static = np.array([[t in leaf.tasks for t in range(leaf.num_tasks)] for leaf in leaves], bool)
    if not any(dense):
        return static
    reached = jnp.stack(
        [
            jnp.any(leaf.rows != 0, axis=tuple(range(1, leaf.rows.ndim))) if is_dense else mask
            for leaf, mask, is_dense in zip(leaves, static, dense, strict=True)
        ]
    )
    return lax.psum(reached.astype(int), axis_name) > 0 if axis_name else reached


def _labels(scope: Any, grads: ArrayTree, params: ArrayTree | None) -> list[Hashable]:
    if callable(scope):
        if params is None:
            raise ValueError(
                "a scope that is a function of the parameters needs them: call"
                " update(grads, state, params)."
            )
        scope = scope(params)
    treedef = jax.tree.structure(grads, is_leaf=is_task_rows)
    try:
        return treedef.flatten_up_to(scope)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"the labels given as scope do not fit the structure of the parameters: {error} For an"
            " nnx.State too, jax.tree.map(label_of, params) makes labels that fit."
        ) from None


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
    return Groups(
        np.array([ids[label] for label in labels], int), np.zeros(len(labels), bool), len(ids)
    )
