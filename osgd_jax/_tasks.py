"""The K losses that a function returns: one array, or any tree of scalars."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_WANTED = "losses must be an array [K], or a tuple, dict or other tree of K real scalars, K >= 1"


class Tasks(NamedTuple):
    """The K tasks as their losses present them.

    Attributes:
      names: one for each task, as from `task_names`.
      ordered: whether the user wrote the tasks in this order. False for losses in a dict of more
        than one key, since JAX sorts the keys.
    """

    names: tuple[str, ...]
    ordered: bool = True


def tasks_of(losses: Any) -> Tasks:
    """Return the tasks of losses, given as their function returns them."""
    return Tasks(task_names(losses), _is_ordered(jax.tree.structure(losses)))


def numbered(num_tasks: int) -> Tasks:
    """Return tasks without names, which are called by their indices."""
    return Tasks(tuple(map(str, range(num_tasks))))


def _is_ordered(treedef: Any) -> bool:
    kind, children = treedef.node_data(), [c for c in treedef.children() if c.num_leaves]
    if kind is None or not children:
        return True
    is_sorted = issubclass(kind[0], Mapping) and not issubclass(kind[0], OrderedDict)
    return not (is_sorted and len(children) > 1) and all(map(_is_ordered, children))


def task_names(losses: Any) -> tuple[str, ...]:
    """Return the names of the tasks, from the keys and fields of their losses.

    Tasks are numbered in the order of `jax.tree.leaves`: a dict by its sorted keys, a NamedTuple or
    tuple by its fields in turn.

    Args:
      losses: as the function of the losses returns them.

    Returns:
      K names: keys, fields or indices, joined by `/` where trees are nested; indices for an array
      `[K]`.

    Example:
      >>> import osgd_jax
      >>> osgd_jax.task_names({"pde": 0.1, "boundary": (0.2, 0.3)})
      ('boundary/0', 'boundary/1', 'pde')
    """
    if hasattr(losses, "shape"):
        (num_tasks,) = _shape_of_array(losses)
        return tuple(map(str, range(num_tasks)))
    leaves = jax.tree.leaves_with_path(losses)
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)


def as_values(losses: Any) -> tuple[jax.Array | tuple[jax.Array, ...], Any]:
    """Check losses.

    Args:
      losses: as the function of the losses returns them.

    Returns:
      An array `[K]` or a tuple of K scalars, and the losses with an array for each number.

    Raises:
      ValueError: if these are not K >= 1 real scalars, or look like losses and auxiliary data.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(losses, is_leaf=lambda x: x is None)
    is_pair = type(losses) in (tuple, list) and len(losses) == 2
    # The commonest reason of a pair that holds other things than losses.
    hint = " Is has_aux=True missing?" if is_pair else ""
    if losses is None or not leaves:
        raise ValueError(f"{_WANTED}; got {losses!r}, which holds none.")
    arrays = [_real(jax.tree_util.keystr(path), leaf, hint) for path, leaf in leaves]
    if jax.tree_util.treedef_is_leaf(treedef):
        _shape_of_array(arrays[0])
        return arrays[0], arrays[0]
    for (path, _), array in zip(leaves, arrays, strict=True):
        if array.shape:
            raise ValueError(
                f"losses{jax.tree_util.keystr(path)} has shape {array.shape}; {_WANTED}. Return its"
                f" mean or sum, or the array alone.{hint}"
            )
    if is_pair and any(half.node_data() for half in treedef.children()):
        raise ValueError(
            "losses is a pair with a container in it, as of losses and auxiliary data:"
            f" {treedef.unflatten(['*'] * len(arrays))!r}.{hint} If both halves hold losses, return"
            " all of them in one tuple or dict."
        )
    return tuple(arrays), treedef.unflatten(arrays)


def _real(name: str, loss: Any, hint: str) -> jax.Array:
    try:
        array = jnp.asarray(loss)
    except (TypeError, ValueError):
        raise ValueError(f"losses{name}={loss!r} is not a number; {_WANTED}.{hint}") from None
    # A Python integer too: it is more often a count among the metrics than a loss.
    if not jnp.issubdtype(array.dtype, jnp.floating):
        remedy = (
            "take its real part or its absolute value"
            if jnp.issubdtype(array.dtype, jnp.complexfloating)
            else "give 0.0 for a task that is off"
        )
        raise ValueError(f"losses{name} has dtype {array.dtype}; {_WANTED}; {remedy}.{hint}")
    return array


def _shape_of_array(losses: jax.Array) -> tuple[int, ...]:
    if losses.ndim != 1 or not losses.size:
        remedy = "" if losses.ndim else " Return (loss,) if there is but one."
        raise ValueError(f"losses has shape {losses.shape}; {_WANTED}.{remedy}")
    return losses.shape
