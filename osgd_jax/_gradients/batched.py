"""The gradients of many losses that one operation returns as an array, by one pullback.

Each loss is followed back through those operations that treat the array's elements apart, such as
the layers of a net on one example each: there it needs its own slice of what they read. What comes
before them is common to all losses, and is pulled back for all at once, as `jax.jacrev` does.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

from osgd_jax._gradients import nested, slicing
from osgd_jax._gradients.programs import Program
from osgd_jax._gradients.slicing import Along, Division, is_literal, opened, shape_of

# A variable and its division.
Key = tuple[Any, Division]


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
    jaxpr = opened(program)
    result, along = jaxpr.outvars[0], Along(0, len(losses))
    tail, head = slicing.cut(jaxpr, nested.RULES, along)
    read = slicing.read_by(tail, result, along)
    linear = _linear_variables(jaxpr)
    ends = [key for key in read if key[0] in linear]
    pruned, inputs = _pruned(jaxpr, head, [variable for variable, _ in ends])
    if not inputs:
        return [None] * len(leaves)

    # Nothing linear is evaluated here: the derivative of a `jax.custom_vjp` can only be transposed.
    constants = [key for key in read if key[0] not in linear]
    of_constants, _ = _pruned(jaxpr, head, [variable for variable, _ in constants])
    values = eval_jaxpr(of_constants, program.consts)

    def loss(of_ends: Sequence[jax.Array], of_constants: Sequence[jax.Array]) -> jax.Array:
        pairs = zip((*ends, *constants), (*of_ends, *of_constants), strict=True)
        values = slicing.evaluate(tail, dict(pairs))
        return slicing.value_of(result, along, values).reshape(())

    cotangents = _cotangents(loss, ends, constants, values, losses)
    types = [jax.typeof(leaves[index]) for index in inputs]
    head_of = functools.partial(eval_jaxpr, pruned, program.consts)
    rows = jax.vmap(jax.linear_transpose(head_of, *types))(cotangents)
    of_input = dict(zip(inputs, rows, strict=True))
    return [of_input.get(index) for index in range(len(leaves))]


def _pruned(jaxpr: jex.core.Jaxpr, head: list, ends: list) -> tuple[jex.core.Jaxpr, list[int]]:
    """Keep of the head what some variables depend on; return it and the inputs that it reads."""
    pruned, used = pe.dce_jaxpr(jaxpr.replace(eqns=head, outvars=ends), [True] * len(ends))
    return pruned, [index for index, is_used in enumerate(used) if is_used]


def _cotangents(
    loss: Callable[[Sequence[jax.Array], Sequence[jax.Array]], jax.Array],
    ends: Sequence[Key],
    constants: Sequence[Key],
    values: Sequence[jax.Array],
    losses: jax.Array,
) -> list[jax.Array]:
    """Pull each loss back to the ends of the tail.

    Args:
      loss: of one example, linear in the ends: slices of the divided ones.
      ends: linear variables that the tail reads.
      constants: other variables that it reads.
      values: of the constants.
      losses: array `[K]`.

    Returns:
      Cotangents of the ends, `[K, *shape]`.
    """
    types = [
        v.aval if by is None else v.aval.update(shape=by.slice_shape(shape_of(v))) for v, by in ends
    ]

    def of_one(values: Sequence[jax.Array]) -> list[jax.Array]:
        transposed = jax.linear_transpose(lambda *of_ends: loss(of_ends, values), *types)
        return list(transposed(jnp.ones_like(losses, shape=())))

    slices = [_slices(value, by) for value, (_, by) in zip(values, constants, strict=True)]
    axes = [by and by.axis for _, by in constants]
    cotangents = jax.vmap(of_one, (axes,), axis_size=len(losses))(slices)
    return [
        c if by is None else _in_place(c, by) for c, (_, by) in zip(cotangents, ends, strict=True)
    ]


def _slices(value: jax.Array, by: Division) -> jax.Array:
    """Cut the axis of the slices in two: which slice, and the length of each."""
    if by is None:
        return value
    shape = value.shape
    sizes = (by.parts, shape[by.axis] // by.parts)
    return value.reshape(*shape[: by.axis], *sizes, *shape[by.axis + 1 :])


def _in_place(slices: jax.Array, by: Along) -> jax.Array:
    """Put the slice of each task, `[K, ...]`, in its place in the whole array, `[K, ...]`."""
    is_own = jnp.eye(by.parts, dtype=bool)
    axis = 1 + by.axis
    others = [i for i in range(1, slices.ndim + 1) if i != axis]
    spread = jnp.where(jnp.expand_dims(is_own, others), jnp.expand_dims(slices, axis), 0)
    shape = list(slices.shape)
    shape[axis] *= by.parts
    return spread.reshape(shape)


def _linear_variables(jaxpr: jex.core.Jaxpr) -> set:
    linear = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not is_literal(atom) and atom in linear for atom in equation.invars):
            linear.update(equation.outvars)
    return linear
