"""Dependencies of each output of a linearized function, found in its jaxpr before it runs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
from jax import lax
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

from osgd_jax._gradients import rules, slicing
from osgd_jax._gradients.nested import is_plain_call
from osgd_jax._gradients.slicing import Along, Division, Plan, Rule, Step, is_literal, opened

# What `jax.make_jaxpr` returns: a `ClosedJaxpr` up to jax 0.11, then a `Jaxpr`.
Program = Any


def trace(linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    """Trace a linear function to a program without calls of other programs."""
    return _inlined(jax.make_jaxpr(linear)(*tangents), tangents)


def elements(program: Program, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    """Make a program with K scalar outputs of one whose results are K scalars or one array `[K]`.

    Where the results are one array, the operations that put it together (`jnp.stack`,
    concatenation) and operations that treat its elements alike (elementwise arithmetic, sums over
    other axes) are looked through, so that each output of the program depends only on what its
    element depends on. Where that cannot be done, each element is taken from the finished array,
    and seems to depend on all that the array depends on.
    """
    if program.out_avals[0].ndim == 0:
        return program
    return jax.make_jaxpr(lambda *args: _evaluate(program, args))(*tangents)


def is_put_together(program: Program) -> bool:
    """Tell whether the array that a program returns is made of parts by stacking, or of one."""
    jaxpr = opened(program)
    tail, _ = slicing.cut(jaxpr, RULES, _along(jaxpr.outvars[0]))
    return any(step.equation.primitive.name in _JOINS for step in tail)


def prune(program: Program, output: int) -> tuple[Callable, tuple[int, ...]]:
    """Cut a program down to one of its outputs.

    Args:
      program: from `elements`.
      output: index of the output to keep.

    Returns:
      A function of the inputs that the output reads, which returns `[output]`, and their indices.
    """
    wanted = [index == output for index in range(len(program.out_avals))]
    jaxpr, used = pe.dce_jaxpr(opened(program), wanted)
    inputs = tuple(index for index, is_used in enumerate(used) if is_used)
    return functools.partial(eval_jaxpr, jaxpr, program.consts), inputs


def _inlined(program: Program, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    def evaluate(program: Program, consts: Sequence, args: Sequence) -> list:
        jaxpr: Any = opened(program)
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        for equation in jaxpr.eqns:
            if is_plain_call(equation):
                inner = equation.params["jaxpr"]
                operands = [a.val if is_literal(a) else values[a] for a in equation.invars]
                results = evaluate(inner, inner.consts, operands)
            else:
                results = slicing.evaluate_alone(jaxpr, equation, values)
            values.update(zip(equation.outvars, results, strict=True))
        return [a.val if is_literal(a) else values[a] for a in jaxpr.outvars]

    return jax.make_jaxpr(lambda *args: evaluate(program, program.consts, args))(*tangents)


def _evaluate(program: Program, args: Sequence) -> list:
    """Evaluate a program of one result; return it as a list of scalars."""
    jaxpr = opened(program)
    (result,) = jaxpr.outvars
    along = _along(result)
    tail, head = slicing.cut(jaxpr, RULES, along)
    read = slicing.read_by(tail, result, along)
    variables = [variable for variable, _ in read]
    values = eval_jaxpr(jaxpr.replace(eqns=head, outvars=variables), program.consts, *args)
    pairs = zip(read, values, strict=True)
    known = {key: value if key[1] is None else _slices(value, key[1]) for key, value in pairs}
    for step in tail:
        operands = [
            slicing.value_of(atom, by, known)
            for atom, by in zip(step.equation.invars, step.operands, strict=True)
        ]
        known[step.equation.outvars[0], step.results[0]] = _slices_of_step(step, operands)
    slices = slicing.value_of(result, along, known)
    return [lax.reshape(element, ()) for element in _listed(slices, along.parts)]


def _along(result: Any) -> Along:
    return Along(0, slicing.shape_of(result)[0])


def _slices(value: jax.Array, along: Along) -> list[jax.Array]:
    length = value.shape[along.axis] // along.parts
    starts = [part * length for part in range(along.parts)]
    return [lax.slice_in_dim(value, i, i + length, axis=along.axis) for i in starts]


def _slices_of_step(step: Step, operands: Sequence[Any]) -> Any:
    """Compute the slices of a result, or one array that stands for each of them."""
    if step.equation.primitive.name in _JOINS:
        return step.evaluate(operands)
    lengths = [len(operand) for operand in operands if isinstance(operand, list)]
    with step.equation.ctx.manager:
        if not lengths:
            return step.evaluate(operands)[0]
        columns = [_listed(operand, lengths[0]) for operand in operands]
        return [step.evaluate(slices)[0] for slices in zip(*columns, strict=True)]


def _listed(operand: Any, length: int) -> list:
    return operand if isinstance(operand, list) else [operand] * length


def _stack(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    along = results[0]
    if along is None or equation.params["axis"] != along.axis:
        return None
    if len(equation.invars) != along.parts:
        return None

    def stacked(operands: Sequence[Any]) -> list[jax.Array]:
        return [lax.expand_dims(operand, (along.axis,)) for operand in operands]

    return [None] * len(equation.invars), stacked


def _concatenate(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    along = results[0]
    if along is None or equation.params["dimension"] != along.axis:
        return None
    lengths = [slicing.shape_of(atom)[along.axis] for atom in equation.invars]
    if sum(lengths) != along.parts:
        return None

    def concatenated(operands: Sequence[Any]) -> list[jax.Array]:
        pairs = zip(operands, lengths, strict=True)
        return [part for operand, length in pairs for part in _listed(operand, length)]

    return [Along(along.axis, n) if n else None for n in lengths], concatenated


# Operations that put slices together.
_JOINS = {
    "stack": Rule(_stack, frozenset(("axis",))),
    "concatenate": Rule(_concatenate, frozenset(("dimension",))),
}
RULES = {**rules.ARITHMETIC, **_JOINS}
