"""The gradients of many losses that one operation returns as an array, by one pullback.

Each loss is followed back through those operations that treat the array's elements apart, such as
the layers of a net on one example each: there it needs its own slice of what they read. What comes
before them is common to all losses, and is pulled back for all at once, as `jax.jacrev` does.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

from osgd_jax._gradients import programs, slicing
from osgd_jax._gradients.programs import Program
from osgd_jax._gradients.slicing import is_literal

_RULES = {**slicing.ARITHMETIC, **slicing.LAYERS}


def pull_back(
    program: Program, leaves: Sequence[jax.Array], losses: jax.Array
) -> list[jax.Array | None]:
    """Compute the gradients `[K, *parameter.shape]` of K losses.

    Args:
      program: linear, from the parameters to the array `[K]` of losses.
      leaves: the parameters.
      losses: array `[K]`.

    Returns:
      An array for each parameter, or None where the losses do not depend on it.
    """
    jaxpr = programs.opened(program)
    tail, head = slicing.cut(jaxpr, _RULES)
    split, whole = slicing.read_by(tail, jaxpr.outvars[0])
    linear = _linear_variables(jaxpr)
    ends = [v for v in (*whole, *split) if v in linear]
    pruned, inputs = _pruned(jaxpr, head, ends)
    if not inputs:
        return [None] * len(leaves)

    # Nothing linear is evaluated here: the derivative of a `jax.custom_vjp` can only be transposed.
    constants = [v for v in dict.fromkeys((*whole, *split)) if v not in linear]
    known = dict(zip(constants, _constants(program, head, constants), strict=True))
    of_whole, of_slices = _cotangents(tail, jaxpr.outvars[0], whole, split, known, losses)
    of_split = [_on_diagonal(slices) for slices in of_slices]

    types = [jax.typeof(leaves[index]) for index in inputs]
    head_of = functools.partial(eval_jaxpr, pruned, program.consts)
    rows = jax.vmap(jax.linear_transpose(head_of, *types))([*of_whole, *of_split])
    of_input = dict(zip(inputs, rows, strict=True))
    return [of_input.get(index) for index in range(len(leaves))]


def _pruned(jaxpr: jex.core.Jaxpr, head: list, ends: list) -> tuple[jex.core.Jaxpr, list[int]]:
    """Keep of the head what some variables depend on; return it and the inputs that it reads."""
    pruned, used = pe.dce_jaxpr(jaxpr.replace(eqns=head, outvars=ends), [True] * len(ends))
    return pruned, [index for index, is_used in enumerate(used) if is_used]


def _constants(program: Program, head: list, variables: list) -> list[jax.Array]:
    """Evaluate variables of the head that do not depend on the inputs."""
    pruned, _ = _pruned(programs.opened(program), head, variables)
    return eval_jaxpr(pruned, program.consts)


def _cotangents(
    tail: Sequence[slicing.Step],
    result: Any,
    whole: list,
    split: list,
    known: dict,
    losses: jax.Array,
) -> tuple[list, list]:
    """Pull each loss back through the tail.

    Returns:
      Of the linear variables that it reads whole, `[K, *shape]`, and of its slices of others, each
      `[K, 1, ...]`.
    """
    linear_whole = [v for v in whole if v not in known]
    linear_split = [v for v in split if v not in known]
    types = [v.aval for v in linear_whole]
    slice_types = [v.aval.update(shape=(1, *v.aval.shape[1:])) for v in linear_split]
    known_whole = {v: known[v] for v in whole if v in known}
    known_split = [v for v in split if v in known]

    def of_one(slices: list[jax.Array]) -> tuple[list, list]:
        def loss(of_whole: list, of_slices: list) -> jax.Array:
            read_split = zip((*known_split, *linear_split), (*slices, *of_slices), strict=True)
            read_whole = known_whole | dict(zip(linear_whole, of_whole, strict=True))
            return slicing.evaluate(tail, dict(read_split), read_whole, result).reshape(())

        return jax.linear_transpose(loss, types, slice_types)(jnp.ones_like(losses, shape=()))

    return jax.vmap(of_one, axis_size=len(losses))([known[v][:, None] for v in known_split])


def _on_diagonal(slices: jax.Array) -> jax.Array:
    """Put the slice of each task, `[K, 1, ...]`, in its place in the whole array, `[K, K, ...]`."""
    own = jnp.eye(len(slices), dtype=bool).reshape(2 * slices.shape[:1] + (1,) * (slices.ndim - 2))
    return jnp.where(own, slices, 0)


def _linear_variables(jaxpr: jex.core.Jaxpr) -> set:
    linear = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not is_literal(atom) and atom in linear for atom in equation.invars):
            linear.update(equation.outvars)
    return linear
