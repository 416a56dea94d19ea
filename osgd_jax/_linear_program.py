"""What a linearized function reads, output by output, found in its jaxpr before anything runs."""

from collections.abc import Callable, Sequence

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.interpreters import partial_eval as pe

ClosedJaxpr = jex.core.ClosedJaxpr

_ELEMENTWISE = {"mul", "div", "neg", "add", "add_any", "sub", "convert_element_type", "copy"}
_ASSEMBLING = _ELEMENTWISE | {"stack", "concatenate"}
_CALLS = {"jit", "pjit"}


def trace_elements(linear: Callable, tangents: Sequence[jax.ShapeDtypeStruct]) -> ClosedJaxpr:
    """Trace a linear function of K results to a jaxpr with K scalar outputs.

    Where the results are one array `[K]`, the operations that put it together (`jnp.stack`,
    concatenation, elementwise arithmetic) are looked through, so that each output of the jaxpr
    depends only on what its element depends on. Where that cannot be done, each element is taken
    from the finished array, and seems to depend on all that the array depends on.
    """
    program = jax.make_jaxpr(linear)(*tangents)
    if program.out_avals[0].ndim == 0:
        return program
    return jax.make_jaxpr(lambda *args: _evaluate(program, args, split=[True])[0])(*tangents)


def prune(program: ClosedJaxpr, output: int) -> tuple[ClosedJaxpr, tuple[int, ...]]:
    """Cut a jaxpr down to one of its outputs; return it and the indices of the inputs it reads."""
    wanted = [index == output for index in range(len(program.out_avals))]
    jaxpr, used = pe.dce_jaxpr(program.jaxpr, wanted)
    inputs = tuple(index for index, is_used in enumerate(used) if is_used)
    return ClosedJaxpr(jaxpr, program.consts), inputs


def _evaluate(program: ClosedJaxpr, args: Sequence, split: Sequence[bool]) -> list:
    """Evaluate a jaxpr; the outputs named by `split`, vectors, are returned as lists of elements.

    The equations that put these vectors together, the tail, are evaluated element by element; all
    others as they are.
    """
    jaxpr = program.jaxpr
    tail, head = _cut(jaxpr, split)
    assembled = {variable for equation in tail for variable in equation.outvars}
    read_by_tail = [atom for equation in tail for atom in equation.invars] + list(jaxpr.outvars)
    needed = [atom for atom in read_by_tail if not _is_literal(atom) and atom not in assembled]
    head_program = ClosedJaxpr(jaxpr.replace(eqns=head, outvars=needed), program.consts)
    values = dict(zip(needed, jex.core.jaxpr_as_fun(head_program)(*args), strict=True))

    def read(atom):
        return atom.val if _is_literal(atom) else values[atom]

    for equation in tail:
        results = _evaluate_by_element(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [
        _elements(read(atom)) if is_split else read(atom)
        for atom, is_split in zip(jaxpr.outvars, split, strict=True)
    ]


def _cut(jaxpr: jex.core.Jaxpr, split: Sequence[bool]) -> tuple[list, list]:
    """Part the equations into the tail, which assembles the vectors to be split, and the head."""
    wanted = {atom for atom, is_split in zip(jaxpr.outvars, split, strict=True) if is_split}
    read_by_head = {
        atom for atom, is_split in zip(jaxpr.outvars, split, strict=True) if not is_split
    }
    tail, head = [], []
    for equation in reversed(jaxpr.eqns):
        results = set(equation.outvars)
        variables = {atom for atom in equation.invars if not _is_literal(atom)}
        if results & wanted and not results & read_by_head and _can_split(equation):
            tail.append(equation)
            wanted |= {variable for variable in variables if _is_vector(variable)}
        else:
            head.append(equation)
            read_by_head |= variables
    return tail[::-1], head[::-1]


def _can_split(equation: jex.core.JaxprEqn) -> bool:
    name = equation.primitive.name
    if name in ("broadcast_in_dim", "reshape"):
        return _shape(equation.outvars[0]) == (1,) and _shape(equation.invars[0]) == ()
    return name in _ASSEMBLING or (name in _CALLS and len(equation.outvars) == 1)


def _evaluate_by_element(equation: jex.core.JaxprEqn, operands: list) -> list[list]:
    name = equation.primitive.name
    if name in _CALLS:
        return _evaluate(equation.params["jaxpr"], list(map(_array, operands)), split=[True])
    if name in ("stack", "broadcast_in_dim", "reshape"):
        return [list(operands)]
    if name == "concatenate":
        return [[element for operand in operands for element in _elements(operand)]]
    (size,) = _shape(equation.outvars[0])
    columns = [
        [operand] * size if _is_scalar(operand) else _elements(operand) for operand in operands
    ]
    return [
        [
            equation.primitive.bind(*elements, **equation.params)
            for elements in zip(*columns, strict=True)
        ]
    ]


def _elements(value) -> list:
    return value if isinstance(value, list) else [value[i] for i in range(value.shape[0])]


def _array(value):
    return jnp.stack(value) if isinstance(value, list) else value


def _is_scalar(value) -> bool:
    return not isinstance(value, list) and jnp.ndim(value) == 0


def _shape(atom) -> tuple[int, ...]:
    return getattr(atom.aval, "shape")  # noqa: B009 - not every aval has one


def _is_vector(atom) -> bool:
    return getattr(atom.aval, "ndim", None) == 1


def _is_literal(atom) -> bool:
    return isinstance(atom, jex.core.Literal)
