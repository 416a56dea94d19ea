"""What a linearized function reads, output by output, found in its jaxpr before anything runs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax import lax
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

# What `jax.make_jaxpr` returns: a `ClosedJaxpr` up to jax 0.11, then a `Jaxpr`.
Program = Any

_ELEMENTWISE = {
    *("mul", "div", "neg", "add", "add_any", "sub"),
    *("select_n", "convert_element_type", "copy", "reduce_precision"),
}
_CALLS = {"jit", "pjit"}


def trace_elements(linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    """Trace a linear function of K results to a program with K scalar outputs.

    Where the results are one array `[K]`, the operations that put it together (`jnp.stack`,
    concatenation) and those that treat its elements alike (elementwise arithmetic, sums over other
    axes) are looked through, so that each output of the program depends only on what its element
    depends on. Where that cannot be done, each element is taken from the finished array, and seems
    to depend on all that the array depends on.
    """
    program = jax.make_jaxpr(linear)(*tangents)
    if program.out_avals[0].ndim == 0:
        return program
    return jax.make_jaxpr(lambda *args: _evaluate(program, args, split=[True])[0])(*tangents)


def prune(program: Program, output: int) -> tuple[Callable, tuple[int, ...]]:
    """Cut a program down to one of its outputs.

    Args:
      program: from `trace_elements`.
      output: index of the output to keep.

    Returns:
      A function of the inputs that the output reads, which returns `[output]`, and their indices.
    """
    wanted = [index == output for index in range(len(program.out_avals))]
    jaxpr, used = pe.dce_jaxpr(_open(program), wanted)
    inputs = tuple(index for index, is_used in enumerate(used) if is_used)
    return functools.partial(eval_jaxpr, jaxpr, program.consts), inputs


def _open(program: Program) -> jex.core.Jaxpr:
    return getattr(program, "jaxpr", program)


def _evaluate(program: Program, args: Sequence, split: Sequence[bool]) -> list:
    """Evaluate a program; return the outputs that `split` marks as lists of slices of axis 0.

    The equations that make these outputs slice by slice, the tail, are so evaluated; all others as
    they are. Arguments may be lists of slices, too.
    """
    jaxpr = _open(program)
    tail, head, _ = _cut(jaxpr, split)
    values = dict(zip(jaxpr.invars, args, strict=True))
    made_by_tail = {variable for equation in tail for variable in equation.outvars}
    read_by_tail = [atom for equation in tail for atom in equation.invars] + list(jaxpr.outvars)
    known = made_by_tail | values.keys()
    needed = [atom for atom in read_by_tail if not _is_literal(atom) and atom not in known]
    head_jaxpr = jaxpr.replace(eqns=head, outvars=needed)
    results = eval_jaxpr(head_jaxpr, program.consts, *map(_array, args))
    values.update(zip(needed, results, strict=True))

    def read(atom, is_split):
        value = atom.val if _is_literal(atom) else values[atom]
        return _slices(value) if is_split else _array(value)

    for equation in tail:
        if equation.primitive.name in _CALLS:
            operands = [atom.val if _is_literal(atom) else values[atom] for atom in equation.invars]
            (slices,) = _evaluate(equation.params["jaxpr"], operands, split=[True])
        else:
            operands = list(map(read, equation.invars, _split_operands(equation) or ()))
            slices = _evaluate_by_slice(equation, operands)
        values[equation.outvars[0]] = slices
    return list(map(read, jaxpr.outvars, split))


def _cut(jaxpr: jex.core.Jaxpr, split: Sequence[bool]) -> tuple[list, list, list[bool]]:
    """Part the equations into the tail, which makes the outputs to be split, and the head.

    The third result tells which inputs the tail reads slice by slice.
    """
    wanted = {atom for atom, is_split in zip(jaxpr.outvars, split, strict=True) if is_split}
    read_whole = {atom for atom, is_split in zip(jaxpr.outvars, split, strict=True) if not is_split}
    tail, head = [], []
    for equation in reversed(jaxpr.eqns):
        results = set(equation.outvars)
        split_operands = None
        if results & wanted and not results & read_whole:
            split_operands = _split_operands(equation)
        if split_operands is None:
            head.append(equation)
            split_operands = [False] * len(equation.invars)
        else:
            tail.append(equation)
        for atom, is_split in zip(equation.invars, split_operands, strict=True):
            if not _is_literal(atom):
                (wanted if is_split else read_whole).add(atom)
    return tail[::-1], head[::-1], [variable in wanted for variable in jaxpr.invars]


def _split_operands(equation: jex.core.JaxprEqn) -> list[bool] | None:
    """Which operands to split so that slices of the result can be computed one by one, if any."""
    name, params = equation.primitive.name, equation.params
    shapes = [_shape(atom) for atom in equation.invars]
    if len(equation.outvars) > 1 or not _shape(equation.outvars[0]):
        return None
    shape = _shape(equation.outvars[0])
    if name in _CALLS:
        return _cut(_open(params["jaxpr"]), split=[True])[2]
    if name in _ELEMENTWISE:
        return [len(operand) == len(shape) and operand[0] == shape[0] for operand in shapes]
    if name == "stack" and params["axis"] == 0:
        return [False] * len(shapes)
    if name == "concatenate" and params["dimension"] == 0:
        return [True] * len(shapes)
    if name == "reduce_sum" and 0 not in params["axes"]:
        return [True]
    if name == "broadcast_in_dim" and len(shapes) == 1:
        keeps_axis = 0 in params["broadcast_dimensions"]
        return [keeps_axis] if not keeps_axis or shapes[0][0] == shape[0] else None
    if name == "reshape" and len(shapes) == 1:
        keeps_axis = shapes[0][:1] == shape[:1]
        return [keeps_axis] if keeps_axis or shape[0] == 1 else None
    return None


def _evaluate_by_slice(equation: jex.core.JaxprEqn, operands: list) -> list:
    name, params = equation.primitive.name, equation.params
    size, *shape = _shape(equation.outvars[0])
    if name == "stack":
        return operands
    if name == "concatenate":
        return [element for operand in operands for element in operand]
    if name == "broadcast_in_dim":
        axes = [axis - 1 for axis in params["broadcast_dimensions"] if axis > 0]
        evaluate = functools.partial(lax.broadcast_in_dim, shape=shape, broadcast_dimensions=axes)
    elif name == "reshape":
        evaluate = functools.partial(lax.reshape, new_sizes=shape)
    elif name == "reduce_sum":
        axes = [axis - 1 for axis in params["axes"]]
        evaluate = functools.partial(jnp.sum, axis=axes)
    else:
        evaluate = functools.partial(equation.primitive.bind, **params)
        # What is not split is a scalar, or the same for all slices.
        operands = [
            operand if isinstance(operand, list) or jnp.ndim(operand) == 0 else operand[0]
            for operand in operands
        ]
    columns = [operand if isinstance(operand, list) else [operand] * size for operand in operands]
    return [evaluate(*slices) for slices in zip(*columns, strict=True)]


def _slices(value) -> list:
    return value if isinstance(value, list) else [value[i] for i in range(value.shape[0])]


def _array(value):
    return jnp.stack(value) if isinstance(value, list) else value


def _shape(atom) -> tuple[int, ...]:
    return getattr(atom.aval, "shape")  # noqa: B009 - not every aval has one


def _is_literal(atom) -> bool:
    return isinstance(atom, jex.core.Literal)
