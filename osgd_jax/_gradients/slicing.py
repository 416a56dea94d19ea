"""Find the equations that treat the slices of their operands apart, and evaluate them on one slice.

A slice is one of the equal parts of an array along an axis, such as the part of one example. `cut`
follows the slices of a program's result backward through its equations, by rules that tell which
slices of the operands a slice of the result reads.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend as jex
from jax.core import eval_jaxpr

Shape = tuple[int, ...]


class Along(NamedTuple):
    """The division of an array into slices: `parts` equal parts along `axis`."""

    axis: int
    parts: int

    def slice_shape(self, shape: Shape) -> Shape:
        """Return the shape of a slice, which keeps the axis."""
        return (*shape[: self.axis], shape[self.axis] // self.parts, *shape[self.axis + 1 :])


# The division of a value, or None for a value that is read whole.
Division = Along | None


class Step(NamedTuple):
    """An equation to evaluate slice by slice.

    Attributes:
      equation: of the program.
      operands: the division of each operand.
      results: the division of each result; None for a result that nothing reads.
      evaluate: computes one slice of each result from a slice of each operand that is divided and
        the whole of each other; anything for a result that nothing reads.
    """

    equation: jex.core.JaxprEqn
    operands: Sequence[Division]
    results: Sequence[Division]
    evaluate: Callable[[Sequence[Any]], Sequence[Any]]


# What a rule finds: the divisions of the operands, and the function that `Step.evaluate` becomes.
Plan = tuple[Sequence[Division], Callable[[Sequence[Any]], Sequence[Any]]]


class Rule(NamedTuple):
    """Describe one operation.

    A rule covers those equations only whose parameters it knows, so a parameter that JAX adds makes
    a program slower but never wrong.

    Attributes:
      plan: takes an equation and the division of each result, None where nothing reads it; returns
        None where slices cannot be computed one by one.
      known: parameters that the rule understands, whatever their value.
      required: parameters that must have the value given here.
    """

    plan: Callable[[jex.core.JaxprEqn, Sequence[Division]], Plan | None]
    known: frozenset[str] = frozenset()
    required: Mapping[str, Any] = {}

    def understands(self, params: Mapping[str, Any]) -> bool:
        """Tell whether the rule covers all parameters of an equation."""
        others = params.keys() - self.known
        return all(name in self.required and params[name] == self.required[name] for name in others)


Rules = Mapping[str, Rule]


def cut(
    jaxpr: jex.core.Jaxpr, rules: Rules, along: Along
) -> tuple[list[Step], list[jex.core.JaxprEqn]]:
    """Part the equations of a jaxpr with one result.

    Returns:
      The tail, which computes the result slice by slice, and the head, which is all before it.
    """
    read: dict[Any, set[Division]] = {}
    if not is_literal(jaxpr.outvars[0]):
        read[jaxpr.outvars[0]] = {along}
    tail, head = [], []
    for equation in reversed(jaxpr.eqns):
        ways = [read.get(result, set()) for result in equation.outvars]
        is_alike = all(len(way) <= 1 for way in ways) and {None} not in ways
        results = [next(iter(way), None) for way in ways] if is_alike else []
        found = step(equation, rules, results) if any(results) else None
        if found is None:
            head.append(equation)
        else:
            tail.append(found)
        divisions = [None] * len(equation.invars) if found is None else found.operands
        for atom, division in zip(equation.invars, divisions, strict=True):
            if not is_literal(atom):
                read.setdefault(atom, set()).add(division)
    return tail[::-1], head[::-1]


def read_by(tail: Sequence[Step], result: Any, along: Along) -> list[tuple[Any, Division]]:
    """List what the tail reads from the head: pairs of a variable and its division."""
    made = {variable for step in tail for variable in step.equation.outvars}
    pairs = [(result, along)]
    pairs += [p for s in tail for p in zip(s.equation.invars, s.operands, strict=True)]
    return list(dict.fromkeys(p for p in pairs if not is_literal(p[0]) and p[0] not in made))


def evaluate(steps: Sequence[Step], values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Evaluate steps on one slice.

    Args:
      steps: in order.
      values: what the steps read from elsewhere, by variable and division: a slice, or the whole
        where the division is None.

    Returns:
      `values` and those of all results.
    """
    values = dict(values)
    for each in steps:
        operands = map(
            lambda atom, by: value_of(atom, by, values), each.equation.invars, each.operands
        )
        with each.equation.ctx.manager:
            results = each.evaluate(list(operands))
        keys = zip(each.equation.outvars, each.results, strict=True)
        values.update(zip(keys, results, strict=True))
    return values


def value_of(atom: Any, by: Division, values: Mapping[Any, Any]) -> Any:
    """Return the value of a literal, or of a variable by its division."""
    return atom.val if is_literal(atom) else values[atom, by]


def step(equation: jex.core.JaxprEqn, rules: Rules, results: Sequence[Division]) -> Step | None:
    """Find how to evaluate an equation slice by slice, if a rule tells."""
    rule = rules.get(equation.primitive.name)
    if rule is None or not rule.understands(equation.params) or equation.effects:
        return None
    plan = rule.plan(equation, results)
    if plan is None:
        return None
    operands, evaluate_slice = plan
    pairs = zip((*equation.invars, *equation.outvars), (*operands, *results), strict=True)
    if any(by is not None and (is_literal(atom) or _is_on_devices(atom, by)) for atom, by in pairs):
        return None
    return Step(equation, operands, results, evaluate_slice)


def whole_step(jaxpr: jex.core.Jaxpr, equation: jex.core.JaxprEqn) -> Step:
    """Evaluate an equation as it stands, for all slices alike."""

    def evaluate_whole(operands: Sequence[Any]) -> Sequence[Any]:
        pairs = zip(equation.invars, operands, strict=True)
        values = {atom: value for atom, value in pairs if not is_literal(atom)}
        return evaluate_alone(jaxpr, equation, values)

    wholes = [None] * len(equation.invars), [None] * len(equation.outvars)
    return Step(equation, *wholes, evaluate_whole)


def _is_on_devices(atom: Any, along: Along) -> bool:
    """Tell whether an explicit mesh axis divides the axis, so that not all devices hold a slice."""
    spec = atom.aval.sharding.spec
    return along.axis < len(spec) and spec[along.axis] is not None


def shape_of(atom: Any) -> Shape:
    """Return the shape of a variable or literal."""
    return getattr(atom.aval, "shape")  # noqa: B009 - not every aval has one


def is_literal(atom: Any) -> bool:
    """Tell a literal from a variable."""
    return isinstance(atom, jex.core.Literal)


def opened(program: Any) -> jex.core.Jaxpr:
    """Return the equations of a program: a `ClosedJaxpr`, or a `Jaxpr` as in jax 0.11."""
    return getattr(program, "jaxpr", program)


def evaluate_alone(
    jaxpr: jex.core.Jaxpr, equation: jex.core.JaxprEqn, values: Mapping[Any, Any]
) -> list:
    """Evaluate one equation of a jaxpr as it stands, from the values of its variables."""
    read = list(dict.fromkeys(atom for atom in equation.invars if not is_literal(atom)))
    alone = jaxpr.replace(eqns=[equation], constvars=[], invars=read, outvars=equation.outvars)
    return eval_jaxpr(alone, (), *[values[atom] for atom in read])
