"""Task gradients: one gradient for each loss, kept only where a loss reaches a parameter."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._math import at_least_float32
from osgd_jax._tasks import Tasks, numbered
from osgd_jax._validation import flatten_like

ArrayTree = Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TaskRows:
    """The rows of the task Jacobian for one parameter array.

    It holds only the rows of the losses that depend on this parameter. A `TaskRows` is a pytree
    node, so a tree of task gradients has the structure of the parameters with a `TaskRows` for each
    array.

    It is not an update, so arithmetic with it raises an error.

    Attributes:
      rows: gradients, shape `[len(tasks), *parameter.shape]`.
      tasks: indices of the losses that the rows belong to, ascending.
      num_tasks: K, the number of losses.
      names: K names of the losses, as from `osgd_jax.task_names`; None where they have none, as in
        a tuple, a list or an array.
      ordered: whether the user wrote the tasks in this order. False for losses from a dict of more
        than one key, because JAX sorts the keys; an order or numbers by position then raise an
        error.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> rows = osgd_jax.TaskRows(jnp.ones((1, 2)), tasks=(1,), num_tasks=3)
      >>> print(osgd_jax.densify(rows))
      [[0. 0.]
       [1. 1.]
       [0. 0.]]
    """

    rows: jax.Array
    tasks: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    num_tasks: int = dataclasses.field(metadata={"static": True})
    names: tuple[str, ...] | None = dataclasses.field(default=None, metadata={"static": True})
    ordered: bool = dataclasses.field(default=True, metadata={"static": True})

    def _refuse(self, _: Any) -> NoReturn:
        # Where optax meets one, in `apply_updates` or in a wrapper.
        raise ValueError(
            "a TaskRows holds the gradients of several losses, of which osgd_jax.orthogonalize or"
            " osgd_jax.aggregate makes an update first. Wrappers such as optax.MultiSteps and"
            " optax.apply_if_finite stand after it in optax.chain, not around it. In"
            " optax.partition every label needs a transformation that takes task gradients, which"
            " optax.set_to_zero is not: to freeze parameters, differentiate with respect to the"
            " others only, or use optax.chain(tx, optax.masked(optax.set_to_zero(), frozen))."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = _refuse
    __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse


def is_task_rows(node: Any) -> bool:
    """Tell whether `node` is a `TaskRows`, for `is_leaf=`."""
    return isinstance(node, TaskRows)


def named(leaf: TaskRows, tasks: Tasks) -> TaskRows:
    """Return the rows with the names of the tasks; without any where these are the indices."""
    names = None if tasks == numbered(leaf.num_tasks) else tasks.names
    return dataclasses.replace(leaf, names=names, ordered=tasks.ordered)


def densify(grads: ArrayTree) -> ArrayTree:
    """Give task gradients the form of `jax.jacrev`: leaves `[K, *parameter.shape]`.

    Rows of losses that do not reach a parameter become zeros. Leaves that are dense already stay.

    Args:
      grads: A tree of `TaskRows`, as from `task_grads`.

    Returns:
      The tree with an array for each `TaskRows`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> grads = osgd_jax.task_grads(lambda p: (p["a"], p["a"] * p["b"]))({"a": 2.0, "b": 3.0})
      >>> print(osgd_jax.densify(grads)["b"])
      [0. 2.]
    """

    def dense(leaf: TaskRows | jax.Array) -> jax.Array:
        if not isinstance(leaf, TaskRows):
            return leaf
        if leaf.tasks == tuple(range(leaf.num_tasks)):
            return leaf.rows
        # Stacked or padded, so that a sharding of the parameter is kept.
        if not leaf.tasks:
            return jnp.pad(leaf.rows, [(0, leaf.num_tasks)] + [(0, 0)] * (leaf.rows.ndim - 1))
        rows = dict(zip(leaf.tasks, leaf.rows, strict=True))
        zeros = jnp.zeros_like(leaf.rows[0])
        return jnp.stack([rows.get(task, zeros) for task in range(leaf.num_tasks)])

    return jax.tree.map(dense, grads, is_leaf=is_task_rows)


def to_task_rows(dense: ArrayTree, reach: ArrayTree) -> ArrayTree:
    """Keep of dense task gradients only the rows that the reach names.

    Args:
      dense: leaves `[K, *parameter.shape]`, as from `jax.jacrev` of stacked losses, or `TaskRows`.
      reach: the same tree with a tuple of task indices for each array, as from `osgd_jax.reach`.

    Returns:
      The tree with a `TaskRows` for each array, with the names that it had, if any.

    Raises:
      ValueError: a reach that is not a tuple of different indices in `0 .. K-1`, or a tree whose
        structure is not that of `dense`.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> dense = {"a": jnp.array([1.0, 3.0]), "b": jnp.array([0.0, 2.0])}
      >>> grads = osgd_jax.to_task_rows(dense, {"a": (0, 1), "b": (1,)})
      >>> grads["b"].rows, grads["b"].tasks
      (Array([2.], dtype=float32), (1,))
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(dense, is_leaf=is_task_rows)
    reaches = flatten_like(reach, dense, ("reach", "dense"), is_leaf=is_task_rows)
    leaves = []
    for (path, leaf), tasks in zip(flat, reaches, strict=True):
        given = leaf if isinstance(leaf, TaskRows) else TaskRows(leaf, (), 0)
        leaf = jnp.asarray(densify(leaf))
        num_tasks = leaf.shape[0] if leaf.ndim else 0
        known = set(tasks) & set(range(num_tasks)) if isinstance(tasks, tuple) else None
        if known is None or len(known) < len(tasks):
            raise ValueError(
                f"reach{jax.tree_util.keystr(path)}={tasks!r} is not a tuple of different task"
                f" indices in 0 .. {num_tasks - 1}; the gradient has shape {leaf.shape}, with the"
                " task axis in front."
            )
        tasks = tuple(sorted(known))
        rows = leaf[np.array(tasks, int)]
        leaves.append(dataclasses.replace(given, rows=rows, tasks=tasks, num_tasks=num_tasks))
    return treedef.unflatten(leaves)


def accumulation_dtype(leaves: Sequence[TaskRows]) -> jnp.dtype:
    """Return float32, or a wider dtype where a gradient has it."""
    return at_least_float32(*(leaf.rows.dtype for leaf in leaves))


def max_abs(leaf: TaskRows, dtype: Any) -> jax.Array:
    """Find the largest magnitude in each row, `[tasks]`."""
    parameter_axes = tuple(range(1, leaf.rows.ndim))
    return jnp.max(jnp.abs(leaf.rows), axis=parameter_axes, initial=0).astype(dtype)


def of_all_tasks(values: jax.Array, tasks: tuple[int, ...], num_tasks: int) -> jax.Array:
    """Fill up an array over some tasks, on every axis, with zeros for the others."""
    if len(tasks) == num_tasks:
        return values
    if _are_adjacent(tasks):
        padding = tasks[0], num_tasks - 1 - tasks[-1]
        return jnp.pad(values, [padding] * values.ndim)
    # Read from where they are, with a zero behind the last. On CPU a scatter takes twice as long to
    # compile, 75 ms, and as long to run, 7 µs; on accelerators it was not measured.
    places = np.full(num_tasks, len(tasks))
    places[list(tasks)] = np.arange(len(tasks))
    padded = jnp.pad(values, (0, 1))
    for axis in range(values.ndim):
        padded = jnp.take(padded, places, axis=axis, mode="clip")
    return padded


def of_tasks(values: jax.Array, tasks: tuple[int, ...]) -> jax.Array:
    """Take those of some tasks out of an array `[K, ...]`."""
    if _are_adjacent(tasks):
        # Cut out by the compiler, where indices would be looked up on the device: as fast on CPU,
        # 6 µs; not measured on accelerators.
        return values[tasks[0] : tasks[-1] + 1]
    return values[np.array(tasks, int)]


def _are_adjacent(tasks: tuple[int, ...]) -> bool:
    return len(tasks) > 0 and tasks == tuple(range(tasks[0], tasks[-1] + 1))
