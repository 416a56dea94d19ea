"""What a linearized function reads, output by output, found in its jaxpr before anything runs."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
from jax import lax
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

from osgd_jax._gradients import slicing
from osgd_jax._gradients.slicing import is_literal

# What `jax.make_jaxpr` returns: a `ClosedJaxpr` up to jax 0.11, then a `Jaxpr`.
Program = Any

_RULES = {**slicing.ARITHMETIC, **slicing.JOINS}


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
    tail, _ = slicing.cut(opened(program), _RULES)
    return any(step.rule.join is not None for step in tail)


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


# The parameters of a call whose equations can stand in its place: those that the equations do not
# depend on, and lists that must ask for nothing.
_WITHOUT_EFFECT = {"jaxpr", "name", "keep_unused", "inline", "ctx_mesh"}
_REQUESTS = {
    *("in_shardings", "out_shardings", "in_layouts", "out_layouts"),
    *("donated_invars", "compiler_options_kvs"),
}


def _is_plain_call(equation: jex.core.JaxprEqn) -> bool:
    """Tell whether an equation calls a program and asks for nothing else."""
    if equation.primitive.name not in ("jit", "pjit"):
        return False
    params = equation.params
    requested = [value for name in _REQUESTS & params.keys() for value in params[name]]
    return params.keys() <= _WITHOUT_EFFECT | _REQUESTS and not any(map(_is_request, requested))


def _is_request(value: Any) -> bool:
    # Sharding that is left to the compiler is an instance of a private class.
    return type(value).__name__ != "UnspecifiedValue" and value not in (None, False)


def _evaluate(program: Program, args: Sequence) -> list:
    """Evaluate a program of one result; return it as a list of scalars."""
    jaxpr = opened(program)
    (result,) = jaxpr.outvars
    tail, head = slicing.cut(jaxpr, _RULES)
    split, whole = slicing.read_by(tail, result)
    values = eval_jaxpr(jaxpr.replace(eqns=head, outvars=split + whole), program.consts, *args)
    of_split = [_slices(value) for value in values[: len(split)]]
    slices = slicing.evaluate(
        tail,
        dict(zip(split, of_split, strict=True)),
        dict(zip(whole, values[len(split) :], strict=True)),
        result,
    )
    slices = slices if isinstance(slices, list) else [slices] * slicing.shape_of(result)[0]
    return [lax.reshape(element, ()) for element in slices]


def _slices(value: jax.Array) -> list[jax.Array]:
    return [lax.slice_in_dim(value, i, i + 1) for i in range(value.shape[0])]
