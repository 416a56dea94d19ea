"""Rules for operations that hold programs: loops, branches, calls and checkpoints."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex
from jax import lax

from osgd_jax._gradients import rules, slicing
from osgd_jax._gradients.slicing import Along, Division, Plan, Rule, Rules, Step, is_literal, opened

# Divisions of some of a program's inputs or results, by index; None for one that is read whole.
Divisions = Mapping[int, Division]


class _Sliced(NamedTuple):
    """A program inside an equation, for one slice.

    Attributes:
      program: as the equation holds it.
      steps: its equations.
      results: the division of each result that is wanted.
      operands: the division of each input that is read.
    """

    program: Any
    steps: Sequence[Step]
    results: Divisions
    operands: Divisions

    def evaluate(self, operands: Sequence[Any]) -> dict[int, Any]:
        """Compute the results that are wanted from values of all inputs."""
        jaxpr: Any = opened(self.program)
        values = {(jaxpr.invars[index], by): operands[index] for index, by in self.operands.items()}
        values = slicing.evaluate(self.steps, values)
        return {
            index: slicing.value_of(jaxpr.outvars[index], by, values)
            for index, by in self.results.items()
        }


def _sliced(program: Any, results: Divisions) -> _Sliced | None:
    """Follow results of a program backward to its inputs.

    Returns:
      None where a value is needed both whole and by slices, or along two axes, where an operation
      has no rule, or where the program holds arrays or has effects.
    """
    jaxpr = opened(program)
    if jaxpr.effects or jaxpr.constvars:
        return None
    read: dict[Any, set[Division]] = {}
    wanted = [(jaxpr.outvars[index], by) for index, by in results.items()]
    steps: list[Step] = []
    for equation in (*reversed(jaxpr.eqns), None):
        for atom, by in wanted:
            if not is_literal(atom):
                read.setdefault(atom, set()).add(by)
            elif by is not None:
                return None
        if any(len(divisions) > 1 for divisions in read.values()):
            return None
        if equation is None:
            break
        wanted = []
        divisions = [next(iter(read[v])) for v in equation.outvars if v in read]
        if not divisions:
            continue
        if any(divisions):
            by_result = [next(iter(read.get(v, {None}))) for v in equation.outvars]
            step = slicing.step(equation, RULES, by_result) if all(divisions) else None
            if step is None:
                return None
        else:
            step = slicing.whole_step(jaxpr, equation)
        steps.append(step)
        wanted = list(zip(equation.invars, step.operands, strict=True))
    inputs = {i: next(iter(read[v])) for i, v in enumerate(jaxpr.invars) if v in read}
    return _Sliced(program, steps[::-1], results, inputs)


def _moved(by: Division, axes: int) -> Division:
    return by and Along(by.axis + axes, by.parts)


def _scan(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    params = equation.params
    num_consts, num_carry = params["num_consts"], params["num_carry"]
    given = {index: by for index, by in enumerate(results) if by is not None}
    if any(index >= num_carry and by.axis == 0 for index, by in given.items()):
        return None  # slices of the axis over which the loop runs
    carry: dict[int, Division] = {i: by for i, by in given.items() if i < num_carry}
    stacked = {i: _moved(by, -1) for i, by in given.items() if i >= num_carry}
    # A carry that a step reads is one that the step before has to compute.
    while True:
        body = _sliced(params["jaxpr"], carry | stacked)
        if body is None:
            return None
        read = {i - num_consts: by for i, by in body.operands.items() if i >= num_consts}
        read_carry = {i: by for i, by in read.items() if i < num_carry}
        if any(by != carry.get(i, by) for i, by in read_carry.items()):
            return None
        if read_carry.keys() <= carry.keys():
            break
        carry |= read_carry

    def evaluate(operands: Sequence[Any]) -> Sequence[Any]:
        consts, rest = operands[:num_consts], operands[num_consts:]

        def step(state: dict[int, Any], xs: Sequence[Any]) -> tuple[dict, dict]:
            held = [state.get(index) for index in range(num_carry)]
            found = body.evaluate([*consts, *held, *xs])
            return {i: found[i] for i in carry}, {i: found[i] for i in stacked}

        state, ys = lax.scan(
            step,
            {index: rest[index] for index in carry},
            rest[num_carry:],
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [(state | ys).get(index) for index in range(len(results))]

    num_operands = len(equation.invars) - num_consts
    of_consts = [body.operands.get(index) for index in range(num_consts)]
    of_carry = [carry.get(index) for index in range(num_carry)]
    of_xs = [_moved(read.get(index), 1) for index in range(num_carry, num_operands)]
    return [*of_consts, *of_carry, *of_xs], evaluate


def _cond(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    branches = [_sliced(branch, _read(results)) for branch in equation.params["branches"]]
    operands: dict[int, Division] = {}
    for branch in branches:
        if branch is None or any(
            by != operands.setdefault(i, by) for i, by in branch.operands.items()
        ):
            return None

    def evaluate(values: Sequence[Any]) -> Sequence[Any]:
        index, *rest = values
        functions = [branch.evaluate for branch in branches if branch is not None]
        found = lax.switch(index, functions, rest)
        return [found.get(i) for i in range(len(results))]

    return [None, *(operands.get(i) for i in range(len(equation.invars) - 1))], evaluate


def _call(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    if not is_plain_call(equation):
        return None
    program = _sliced(equation.params["jaxpr"], _read(results))
    if program is None:
        return None

    def evaluate(values: Sequence[Any]) -> Sequence[Any]:
        found = program.evaluate(values)
        return [found.get(index) for index in range(len(results))]

    return [program.operands.get(index) for index in range(len(equation.invars))], evaluate


def _checkpoint(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    program = _sliced(equation.params["jaxpr"], _read(results))
    if program is None:
        return None

    def evaluate(values: Sequence[Any]) -> Sequence[Any]:
        traced = jax.make_jaxpr(lambda *values: list(program.evaluate(values).values()))(*values)
        params = dict(equation.params, jaxpr=opened(traced))
        found = dict(zip(program.results, equation.primitive.bind(*values, **params), strict=True))
        return [found.get(index) for index in range(len(results))]

    return [program.operands.get(index) for index in range(len(equation.invars))], evaluate


def _read(results: Sequence[Division]) -> dict[int, Division]:
    return {index: by for index, by in enumerate(results) if by is not None}


# The parameters of a call whose equations can stand in its place: parameters without effect on the
# equations, and lists that must ask for nothing.
_WITHOUT_EFFECT = {"jaxpr", "name", "keep_unused", "inline", "ctx_mesh"}
_REQUESTS = {
    *("in_shardings", "out_shardings", "in_layouts", "out_layouts"),
    *("donated_invars", "compiler_options_kvs"),
}


def is_plain_call(equation: jex.core.JaxprEqn) -> bool:
    """Tell whether an equation calls a program and asks for nothing else."""
    if equation.primitive.name not in ("jit", "pjit"):
        return False
    params = equation.params
    requested = [value for name in _REQUESTS & params.keys() for value in params[name]]
    return params.keys() <= _WITHOUT_EFFECT | _REQUESTS and not any(map(_is_request, requested))


def _is_request(value: Any) -> bool:
    # Sharding that is left to the compiler is an instance of a private class.
    return type(value).__name__ != "UnspecifiedValue" and value not in (None, False)


# All operations that a loss of one example can be made of.
RULES: Rules = {
    **rules.ARITHMETIC,
    **rules.LAYERS,
    "scan": Rule(
        _scan,
        frozenset(("jaxpr", "length", "reverse", "unroll", "num_consts", "num_carry", "linear")),
        {"_split_transpose": False},
    ),
    "cond": Rule(_cond, frozenset(("branches",))),
    **dict.fromkeys(("jit", "pjit"), Rule(_call, frozenset(_WITHOUT_EFFECT | _REQUESTS))),
    "remat2": Rule(_checkpoint, frozenset(("jaxpr", "prevent_cse", "differentiated", "policy"))),
}
