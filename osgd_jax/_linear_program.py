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

ELEMENTWISE = {
    *("mul", "div", "neg", "add", "add_any", "sub"),
    *("select_n", "convert_element_type", "copy", "reduce_precision"),
}
_CALLS = {"jit", "pjit"}
_JOINS = {"stack", "concatenate"}


def trace(linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    """Trace a linear function to a program without calls of other programs."""
    return _inlined(jax.make_jaxpr(linear)(*tangents), tangents)


def elements(program: Program, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    """Make a program with K scalar outputs of one whose results are K scalars or one array `[K]`.

    Where the results are one array, the operations that put it together (`jnp.stack`,
    concatenation) and those that treat its elements alike (elementwise arithmetic, sums over other
    axes) are looked through, so that each output of the program depends only on what its element
    depends on. Where that cannot be done, each element is taken from the finished array, and seems
    to depend on all that the array depends on.
    """
    if program.out_avals[0].ndim == 0:
        return program
    return jax.make_jaxpr(lambda *args: _evaluate(program, args))(*tangents)


def is_put_together(program: Program) -> bool:
    """Tell whether the array that a program returns is made of parts by stacking, or of one."""
    tail, _ = cut(opened(program), split_operands)
    return any(equation.primitive.name in _JOINS for equation in tail)


def prune(program: Program, output: int) -> tuple[Callable, tuple[int, ...]]:
    """Cut a program down to one of its outputs.

    Args:
      program: from `trace_elements`.
      output: index of the output to keep.

    Returns:
      A function of the inputs that the output reads, which returns `[output]`, and their indices.
    """
    wanted = [index == output for index in range(len(program.out_avals))]
    jaxpr, used = pe.dce_jaxpr(opened(program), wanted)
    inputs = tuple(index for index, is_used in enumerate(used) if is_used)
    return functools.partial(eval_jaxpr, jaxpr, program.consts), inputs


def opened(program: Program) -> jex.core.Jaxpr:
    """Return the equations of a program."""
    return getattr(program, "jaxpr", program)


def _inlined(program: Program, tangents: Sequence[jax.ShapeDtypeStruct]) -> Program:
    def evaluate(program: Program, consts: Sequence, args: Sequence) -> list:
        jaxpr: Any = opened(program)
        values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))
        for equation in jaxpr.eqns:
            if _is_plain_call(equation):
                inner = equation.params["jaxpr"]
                operands = [a.val if is_literal(a) else values[a] for a in equation.invars]
                results = evaluate(inner, inner.consts, operands)
            else:
                read = list(dict.fromkeys(a for a in equation.invars if not is_literal(a)))
                alone = jaxpr.replace(
                    eqns=[equation], constvars=[], invars=read, outvars=equation.outvars
                )
                results = eval_jaxpr(alone, (), *[values[a] for a in read])
            values.update(zip(equation.outvars, results, strict=True))
        return [a.val if is_literal(a) else values[a] for a in jaxpr.outvars]

    return jax.make_jaxpr(lambda *args: evaluate(program, program.consts, args))(*tangents)


def _is_plain_call(equation: jex.core.JaxprEqn) -> bool:
    """Whether an equation calls a program, and asks for no sharding with it."""
    if equation.primitive.name not in _CALLS:
        return False
    shardings = (*equation.params["in_shardings"], *equation.params["out_shardings"])
    return not any(isinstance(each, jax.sharding.Sharding) for each in shardings)


def _evaluate(program: Program, args: Sequence) -> list:
    """Evaluate a program of one result; return it as a list of scalars.

    The equations that make it slice by slice, the tail, are so evaluated; all others as they are.
    """
    jaxpr = opened(program)
    tail, head = cut(jaxpr, split_operands)
    values = dict(zip(jaxpr.invars, args, strict=True))
    made_by_tail = {variable for equation in tail for variable in equation.outvars}
    read_by_tail = [atom for equation in tail for atom in equation.invars] + list(jaxpr.outvars)
    known = made_by_tail | values.keys()
    needed = [atom for atom in read_by_tail if not is_literal(atom) and atom not in known]
    head_jaxpr = jaxpr.replace(eqns=head, outvars=needed)
    results = eval_jaxpr(head_jaxpr, program.consts, *args)
    values.update(zip(needed, results, strict=True))

    def read(atom, is_split):
        value = atom.val if is_literal(atom) else values[atom]
        return _slices(value) if is_split else _array(value)

    for equation in tail:
        operands = list(map(read, equation.invars, split_operands(equation) or ()))
        values[equation.outvars[0]] = _evaluate_by_slice(equation, operands)
    return list(read(jaxpr.outvars[0], True))


def cut(jaxpr: jex.core.Jaxpr, split: Callable) -> tuple[list, list]:
    """Part the equations into the tail, which makes the result slice by slice, and the head.

    Args:
      jaxpr: of one result.
      split: tells which operands of an equation to split, or that it cannot be, by None.
    """
    wanted, read_whole = set(jaxpr.outvars), set()
    tail, head = [], []
    for equation in reversed(jaxpr.eqns):
        results = set(equation.outvars)
        operands = None
        if results & wanted and not results & read_whole:
            operands = split(equation)
        if operands is None:
            head.append(equation)
            operands = [False] * len(equation.invars)
        else:
            tail.append(equation)
        for atom, is_split in zip(equation.invars, operands, strict=True):
            if not is_literal(atom):
                (wanted if is_split else read_whole).add(atom)
    return tail[::-1], head[::-1]


def split_operands(equation: jex.core.JaxprEqn) -> list[bool] | None:
    """Find which operands to split so that slices of the result can be computed one by one."""
    name, params = equation.primitive.name, equation.params
    shapes = [shape_of(atom) for atom in equation.invars]
    if len(equation.outvars) > 1 or not shape_of(equation.outvars[0]):
        return None
    shape = shape_of(equation.outvars[0])
    if name in ELEMENTWISE:
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
    size, *shape = shape_of(equation.outvars[0])
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


def shape_of(atom) -> tuple[int, ...]:
    """Return the shape of a variable or literal."""
    return getattr(atom.aval, "shape")  # noqa: B009 - not every aval has one


def is_literal(atom) -> bool:
    """Tell a literal from a variable."""
    return isinstance(atom, jex.core.Literal)
