"""The gradients of several losses, each computed only where it is not zero by construction."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax import lax

from osgd_jax import _linear_program
from osgd_jax._task_rows import TaskRows


def value_and_task_grads(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Make a function that computes K losses and the gradient of each.

    The counterpart of `jax.value_and_grad` for several losses. The function is linearized once;
    then each loss is pulled back through those operations only that lie between it and a
    parameter, found by analysis of the jaxpr when the function is traced. Losses as a tuple or
    list are told apart; so are those of an array put together by `jnp.stack` or concatenation,
    also where arithmetic, `jnp.where` or a mean over examples comes after it. Where the array is
    indexed or multiplied by a matrix, or comes out of a `jax.checkpoint` around all of it, each
    loss counts as reaching whatever the array depends on, which costs as much as `jax.jacrev`.
    Losses are pulled back one after the other, the last one first, so that what only later losses
    read need not be kept in memory until all are done.

    Args:
      fun: returns K real scalar losses, as an array `[K]` or a tuple or list of K scalars; with
        `has_aux`, a pair of these and any auxiliary data.
      argnums: which positional argument or arguments to differentiate with respect to.
      has_aux: whether `fun` returns a pair `(losses, aux)`.

    Returns:
      A function with the arguments of `fun` that returns `(losses, grads)`, or
      `((losses, aux), grads)` with `has_aux`. `losses` are as `fun` returned them; `grads` has the
      structure of the argument (a tuple of them for several `argnums`) with a `TaskRows` in place
      of each array.

    Raises:
      ValueError: while tracing, if the losses are not K >= 1 real scalars, or if a parameter is
        not of a real floating dtype.
    """

    @functools.wraps(fun)
    def value_and_task_grads_fun(*args, **kwargs):
        flat, treedef = jax.tree_util.tree_flatten_with_path(_select(args, argnums))
        names = [jax.tree_util.keystr(path) for path, _ in flat]
        leaves = [_check_parameter(name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)]

        def losses_of(*leaves):
            parameters = treedef.unflatten(leaves)
            result = fun(*_replace(args, argnums, parameters), **kwargs)
            losses, aux = _split_aux(result) if has_aux else (result, None)
            return _check_losses(losses), (losses, aux)

        values, linear, (losses, aux) = jax.linearize(losses_of, *leaves, has_aux=True)
        program = _linear_program.trace_elements(linear, [jax.typeof(leaf) for leaf in leaves])
        grads = treedef.unflatten(_pull_back(program, leaves, values))
        return ((losses, aux) if has_aux else losses), grads

    return value_and_task_grads_fun


def task_grads(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Make a function that computes the gradients of K losses.

    As `value_and_task_grads`, which see, without the losses.

    Args:
      fun: returns K real scalar losses, with `has_aux` a pair of these and auxiliary data.
      argnums: which positional argument or arguments to differentiate with respect to.
      has_aux: whether `fun` returns a pair `(losses, aux)`.

    Returns:
      A function with the arguments of `fun` that returns `grads`, or `(grads, aux)` with `has_aux`.
    """
    value_and_grads = value_and_task_grads(fun, argnums, has_aux)

    @functools.wraps(fun)
    def task_grads_fun(*args, **kwargs):
        value, grads = value_and_grads(*args, **kwargs)
        return (grads, value[1]) if has_aux else grads

    return task_grads_fun


def reach(
    fun: Callable[..., Any], argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable[..., Any]:
    """Make a function that tells which of K losses depend on each parameter array.

    Nothing is computed: the function is traced with the shapes of its arguments.

    Args:
      fun: returns K real scalar losses, with `has_aux` a pair of these and auxiliary data.
      argnums: which positional argument or arguments to look at.
      has_aux: whether `fun` returns a pair `(losses, aux)`.

    Returns:
      A function with the arguments of `fun` that returns the tree of the selected argument with a
      tuple of task indices, ascending, in place of each array.
    """
    grads_of = task_grads(fun, argnums, has_aux)

    def reach_fun(*args, **kwargs):
        leaves, treedef = jax.tree.flatten((args, kwargs))
        is_array = [isinstance(x, jax.Array | jax.ShapeDtypeStruct | np.ndarray) for x in leaves]

        # Flags and the like stay what they are, for the function to branch on.
        def grads_alone(*arrays):
            given = iter(arrays)
            filled = [next(given) if a else x for a, x in zip(is_array, leaves, strict=True)]
            args, kwargs = treedef.unflatten(filled)
            result = grads_of(*args, **kwargs)
            return result[0] if has_aux else result

        arrays = [x for a, x in zip(is_array, leaves, strict=True) if a]
        grads = jax.eval_shape(grads_alone, *arrays)
        return jax.tree.map(
            lambda leaf: leaf.tasks, grads, is_leaf=lambda node: isinstance(node, TaskRows)
        )

    return reach_fun


def _select(args: tuple, argnums: int | Sequence[int]) -> Any:
    if isinstance(argnums, int):
        return args[argnums]
    return tuple(args[index] for index in argnums)


def _replace(args: tuple, argnums: int | Sequence[int], values: Any) -> list:
    replaced = list(args)
    if isinstance(argnums, int):
        replaced[argnums] = values
    else:
        for index, value in zip(argnums, values, strict=True):
            replaced[index] = value
    return replaced


def _check_parameter(name: str, leaf: Any) -> jax.Array:
    leaf = jnp.asarray(leaf)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(
            f"parameter{name} has dtype {leaf.dtype}; task gradients are taken with respect to real"
            " floating-point arrays only. Keep other arrays in an argument of their own."
        )
    return leaf


def _split_aux(result: Any) -> tuple[Any, Any]:
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise ValueError(
            f"with has_aux=True the function must return a pair (losses, aux); got {result!r}."
        )
    return result[0], result[1]


def _check_losses(losses: Any) -> jax.Array | tuple[jax.Array, ...]:
    wanted = "the losses must be an array [K] or a tuple or list of K real scalars, K >= 1"
    as_sequence = isinstance(losses, tuple | list)
    try:
        arrays = [jnp.asarray(loss) for loss in (losses if as_sequence else [losses])]
    except (TypeError, ValueError):
        raise ValueError(f"{wanted}; got {losses!r}. Is has_aux=True missing?") from None
    shapes = [array.shape for array in arrays]
    if as_sequence and (not shapes or any(shape != () for shape in shapes)):
        raise ValueError(f"{wanted}; got a {type(losses).__name__} of shapes {shapes}.")
    if not as_sequence and (len(shapes[0]) != 1 or shapes[0][0] == 0):
        raise ValueError(f"{wanted}; got shape {shapes[0]}.")
    for array in arrays:
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{wanted}; got dtype {array.dtype}.")
    return tuple(arrays) if as_sequence else arrays[0]


def _pull_back(
    program: _linear_program.ClosedJaxpr,
    leaves: list[jax.Array],
    losses: jax.Array | Sequence[jax.Array],
) -> list[TaskRows]:
    """Transpose the linear program output by output; gather the rows that each leaf receives."""
    num_tasks = len(losses)
    rows: list[dict[int, jax.Array]] = [{} for _ in leaves]
    cotangents: Sequence[jax.Array] = ()
    # From the last loss, which reads most, one after the other: what a pullback alone reads is
    # freed before the next begins. In another order, or left to the compiler, all of it is held.
    for task in reversed(range(num_tasks)):
        pruned, inputs = _linear_program.prune(program, task)
        if not inputs:
            continue
        transposed = jax.linear_transpose(
            jex.core.jaxpr_as_fun(pruned), *(jax.typeof(leaves[leaf]) for leaf in inputs)
        )
        # Like the loss, whose type inside `jax.shard_map` names the mesh axes that it varies over.
        seed = _after(cotangents, jnp.ones_like(losses[task]))
        cotangents = transposed([seed])
        for leaf, cotangent in zip(inputs, cotangents, strict=True):
            rows[leaf][task] = cotangent
    return [
        TaskRows(_stack(leaf_rows, leaf), tuple(sorted(leaf_rows)), num_tasks)
        for leaf_rows, leaf in zip(rows, leaves, strict=True)
    ]


def _after(arrays: Sequence[jax.Array], value: jax.Array) -> jax.Array:
    """The scalar `value`, not available before the arrays are."""
    usable = [array for array in arrays if array.size and _is_everywhere(array, value)]
    if not usable:
        return value
    return lax.platform_dependent(value, *usable, cpu=_after_by_value, default=_after_by_barrier)


def _after_by_barrier(value: jax.Array, *arrays: jax.Array) -> jax.Array:
    return lax.optimization_barrier((value, arrays))[0]


def _after_by_value(value: jax.Array, *arrays: jax.Array) -> jax.Array:
    # XLA drops barriers on CPU before it orders anything, but does not see that no number is above
    # infinity.
    elements = [array[(0,) * array.ndim].astype(value.dtype) for array in arrays]
    return jnp.where(jnp.max(jnp.stack(elements)) > jnp.inf, 0, value)


def _is_everywhere(array: jax.Array, value: jax.Array) -> bool:
    """Whether an element can be read wherever `value` is, by the types that meshes give."""
    of_array, of_value = jax.typeof(array), jax.typeof(value)
    varies_alike = of_array.manual_axis_type.varying <= of_value.manual_axis_type.varying
    return varies_alike and not any(of_array.sharding.spec)


def _stack(rows: dict[int, jax.Array], leaf: jax.Array) -> jax.Array:
    if not rows:
        return jnp.zeros((0, *leaf.shape), leaf.dtype)
    return jnp.stack([rows[task] for task in sorted(rows)])
