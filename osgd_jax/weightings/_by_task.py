"""Arguments that hold a value for each task, or that call tasks by their names or indices."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from osgd_jax._tasks import Tasks, numbered, task_names
from osgd_jax._validation import is_traced


def by_position(argument: str, values: Any, tasks: Tasks) -> Any:
    """Return one value for each task in the order of the tasks.

    Args:
      argument: name of the argument.
      values: a mapping from the names of the tasks, which may be nested as their losses are; or
        values by position, one for all or None, which are returned as they are.
      tasks: the tasks.

    Raises:
      ValueError: names that are not those of the tasks; different values by position for tasks
        from a dict.
    """
    if isinstance(values, Mapping):
        names, numbers = task_names(dict(values)), jax.tree.leaves(dict(values))
        check_names(argument, values, names, tasks)
        ordered = [numbers[names.index(name)] for name in tasks.names]
        return jnp.stack(ordered) if is_traced(ordered) else tuple(ordered)
    example = "{" + ", ".join(f"{name!r}: ..." for name in tasks.names) + "}"
    if not _are_equal(values):
        check_ordered(argument, values, tasks, f"{argument}={example}")
    return values


def index_of(argument: str, task: Any, tasks: Tasks) -> int:
    """Return the index of a task that is called by its name or its index.

    Raises:
      ValueError: there is no such task, or it is an index of a task from a dict.
    """
    if isinstance(task, str):
        if tasks.names.count(task) != 1:
            raise ValueError(
                f"{argument}={task!r} must be one of {_listed(tasks.names)}.{_hint(tasks)}"
            )
        return tasks.names.index(task)
    check_ordered(argument, task, tasks, f"{argument}={tasks.names[-1]!r}")
    if not _is_index(task) or not 0 <= task < len(tasks.names):
        raise ValueError(
            f"{argument}={task!r} must be a name of a task or an index below {len(tasks.names)}."
        )
    return operator.index(task)


def indices_of(argument: str, chosen: Sequence[Any], tasks: Tasks) -> list[int]:
    """Return the indices of tasks that are called by their names or indices.

    Raises:
      ValueError: as `index_of`.
    """
    if not all(isinstance(task, str) for task in chosen):
        check_ordered(argument, chosen, tasks, f"{argument}=({tasks.names[-1]!r},)")
    return [index_of(argument, task, tasks) for task in chosen]


def check_ordered(argument: str, value: Any, tasks: Tasks, example: str) -> None:
    """Raise a ValueError for a value by position where nobody wrote the tasks in their order."""
    if not tasks.ordered:
        raise ValueError(
            f"{argument}={value!r} goes by the position of the tasks, but the losses are in a dict,"
            f" whose keys JAX sorts: {_listed(tasks.names)}. Name them: {example}."
        )


def check_names(argument: str, value: Any, names: Sequence[str], tasks: Tasks) -> None:
    """Raise a ValueError unless `names` are those of all tasks, each once."""
    if sorted(names) != sorted(tasks.names) or len(set(names)) < len(names):
        raise ValueError(
            f"{argument}={value!r} must name each of {_listed(tasks.names)} once.{_hint(tasks)}"
        )


def _hint(tasks: Tasks) -> str:
    if tasks != numbered(len(tasks.names)):
        return ""
    return (
        " Names come with the gradients of losses in a dict or NamedTuple, from"
        " osgd_jax.task_grads; for dense gradients, pass the losses, update(..., losses=losses)."
    )


def _listed(names: Sequence[str]) -> str:
    return "the losses " + ", ".join(map(repr, names))


def _is_index(task: Any) -> bool:
    return isinstance(task, int | np.integer) and not isinstance(task, bool)


def _are_equal(values: Any) -> bool:
    """Tell whether these are known to be one number, or several equal ones."""
    count = sum(np.size(leaf) for leaf in jax.tree.leaves(values))
    return count < 2 or (not is_traced(values) and len(set(np.ravel(values).tolist())) == 1)
