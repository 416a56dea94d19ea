"""Arguments to differentiate, and calls with Flax NNX modules as functions of arrays."""

import contextlib
import functools
import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import jax
from flax import nnx

Argnum = int | nnx.DiffState
Filters = dict[int, nnx.DiffState]

_CONTEXT = "osgd_jax.task_grads"


def collect(argnums: Argnum | Iterable[Argnum]) -> Argnum | tuple[Argnum, ...]:
    """Read `argnums` once, so that an iterator serves for every call."""
    # A string is no sequence of indices; `select` refuses it.
    if isinstance(argnums, Iterable) and not isinstance(argnums, str):
        return tuple(argnums)
    return cast("Argnum", argnums)


def is_single(argnums: Argnum | tuple[Argnum, ...]) -> bool:
    """Tell whether `argnums` names one argument, so that the gradients are no tuple."""
    return not isinstance(argnums, tuple)


def select(argnums: Argnum | tuple[Argnum, ...], num_args: int) -> Filters:
    """Find the arguments to differentiate.

    Args:
      argnums: one index or `nnx.DiffState`, or several.
      num_args: number of positional arguments of the call.

    Returns:
      For each index, in the order of `argnums`, the variables of modules to differentiate.

    Raises:
      ValueError: if an index is no integer, out of range, or there twice.
    """
    filters: Filters = {}
    for argnum in argnums if isinstance(argnums, tuple) else [argnums]:
        given = argnum if isinstance(argnum, nnx.DiffState) else nnx.DiffState(argnum, nnx.Param)
        try:
            index = operator.index(given.argnum)
        except TypeError:
            raise ValueError(
                f"argnums={argnums!r} must be the index of a positional argument, an"
                " nnx.DiffState, or a sequence of these."
            ) from None
        if not -num_args <= index < num_args:
            raise ValueError(
                f"argnums={argnums!r} names argument {index} of {num_args} positional arguments."
                " Give what is to be differentiated by position, not by keyword."
            )
        index %= num_args
        if index in filters:
            raise ValueError(f"argnums={argnums!r} names argument {index} twice; name it once.")
        filters[index] = nnx.DiffState(-1, given.filter)
    return filters


class ArrayCall(NamedTuple):
    """A call without modules.

    Attributes:
      fun: takes `args` and `kwargs` as these two; returns a pair of what the user's function
        returns and of what has become of the modules.
      args: positional arguments, with an `nnx.NodeStates` in place of each module, whose first
        state is what is differentiated.
      kwargs: keyword arguments, likewise.
      restore: takes the pair outside of all tracing, writes the changes into the user's modules
        and returns the first of the pair.
    """

    fun: Callable[[Any, Any], tuple[Any, Any]]
    args: tuple
    kwargs: dict[str, Any]
    restore: Callable[[tuple[Any, Any]], Any]


@contextlib.contextmanager
def array_call(
    fun: Callable[..., Any], args: tuple, kwargs: dict[str, Any], filters: Filters
) -> Iterator[ArrayCall]:
    """Express `fun(*args, **kwargs)` without modules, in the way of `nnx.value_and_grad`.

    Within the context Flax keeps in mind which module outside is which inside.
    """
    if not _has_modules((args, kwargs)):
        yield ArrayCall(lambda args, kwargs: (fun(*args, **kwargs), None), args, kwargs, _first)
        return

    def of_states(args, kwargs):
        args, kwargs = nnx.from_tree((args, kwargs), is_inner=True, ctxtag=_CONTEXT)
        result = fun(*args, **kwargs)
        modules = jax.tree.map(
            lambda node: node if _is_module(node) else None, (args, kwargs), is_leaf=_is_module
        )
        return nnx.to_tree((result, modules), ctxtag=_CONTEXT)

    with nnx.update_context(_CONTEXT):
        prefix = (tuple(map(filters.get, range(len(args)))), None)
        args, kwargs = nnx.to_tree((args, kwargs), prefix=prefix, split_fn=_split, ctxtag=_CONTEXT)
        merge = functools.partial(nnx.from_tree, is_inner=False, ctxtag=_CONTEXT)
        yield ArrayCall(of_states, args, kwargs, lambda pair: _first(merge(pair)))


def parameters(args: tuple, filters: Filters) -> tuple:
    """Take from the arguments of an `ArrayCall` the trees to differentiate."""
    return tuple(
        jax.tree.map(
            lambda node: node.states[0] if _is_split(node) else node, args[index], is_leaf=_is_split
        )
        for index in filters
    )


def with_parameters(args: tuple, filters: Filters, trees: tuple) -> tuple:
    """Put trees like those of `parameters` into the arguments of an `ArrayCall`."""

    def put(node, tree):
        return node.replace(states=(tree, *node.states[1:])) if _is_split(node) else tree

    replaced = list(args)
    for index, tree in zip(filters, trees, strict=True):
        replaced[index] = jax.tree.map(put, args[index], tree, is_leaf=_is_split)
    return tuple(replaced)


def _split(context: nnx.SplitContext, path: Any, given: nnx.DiffState | None, node: Any):
    if given is None or isinstance(node, nnx.Variable):
        graphdef, *states = context.split(node)
    else:
        graphdef, *states = context.split(node, given.filter, ...)
    return nnx.NodeStates.from_split(graphdef, *states)


def _has_modules(tree: Any) -> bool:
    # An `nnx.State` is a tree of arrays like any other, also where its variables are from outside
    # of a `jax.jit`.
    nodes = jax.tree.leaves(
        tree, is_leaf=lambda node: _is_module(node) or isinstance(node, nnx.State)
    )
    return any(map(_is_module, nodes))


def _is_module(node: Any) -> bool:
    return isinstance(node, nnx.Pytree | nnx.Variable)


def _is_split(node: Any) -> bool:
    return isinstance(node, nnx.NodeStates)


_first = operator.itemgetter(0)
