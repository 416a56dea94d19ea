"""Operations that act on the slices of axis 0 one by one, and their evaluation on such slices.

A `Rule` declares the parameters of an operation that it understands. An equation with any other
parameter, or with another value than a rule requires, has no rule and is evaluated as it stands,
so a parameter that JAX adds makes a program slower but never wrong.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.extend as jex
from jax import lax

Shape = tuple[int, ...]
# Slices `[1, ...]` of one value, or one array that stands for each of them.
Slices = Any


class Rule(NamedTuple):
    """Describe one operation along axis 0.

    Attributes:
      split: takes the shapes of the operands, the shape of the result and the parameters in
        `reads` by keyword; returns for each operand whether a slice of the result reads the same
        slice of it (or else all of it), or None where slices cannot be computed one by one.
      reads: parameters that `split` takes.
      carries: parameters that mean the same for a slice, whatever their value.
      requires: parameters that must have the value given here.
      resized: the parameter that begins with the length of the result, which is 1 for a slice.
      join: for operations that put slices together, the slices of the result from the operands
        and the lengths of these along axis 0.
    """

    split: Callable[..., list[bool] | None]
    reads: tuple[str, ...] = ()
    carries: tuple[str, ...] = ()
    requires: Mapping[str, Any] = {}
    resized: str | None = None
    join: Callable[[Sequence[Slices], Sequence[int]], Slices] | None = None

    def understands(self, params: Mapping[str, Any]) -> bool:
        """Tell whether the rule covers all parameters of an equation."""
        others = params.keys() - {*self.reads, *self.carries}
        return all(name in self.requires and params[name] == self.requires[name] for name in others)


Rules = Mapping[str, Rule]


class Step(NamedTuple):
    """An equation to evaluate slice by slice: its rule, and which of its operands are split."""

    equation: jex.core.JaxprEqn
    rule: Rule
    is_split: list[bool]

    def evaluate(self, operands: Sequence[Slices]) -> Slices:
        """Compute the slices of the result.

        Args:
          operands: slices of operands that are split, whole arrays of the others.
        """
        equation, rule = self.equation, self.rule
        if rule.join is not None:
            return rule.join(operands, [next(iter(shape_of(a)), 1) for a in equation.invars])
        params = dict(equation.params)
        if rule.resized is not None:
            params[rule.resized] = (1, *params[rule.resized][1:])
        lengths = [len(operand) for operand in operands if isinstance(operand, list)]
        with equation.ctx.manager:
            if not lengths:
                return equation.primitive.bind(*operands, **params)
            columns = [_listed(operand, lengths[0]) for operand in operands]
            return [
                equation.primitive.bind(*slices, **params) for slices in zip(*columns, strict=True)
            ]


def cut(jaxpr: jex.core.Jaxpr, rules: Rules) -> tuple[list[Step], list[jex.core.JaxprEqn]]:
    """Part the equations of a jaxpr with one result.

    Returns:
      The tail, which computes the result slice by slice, and the head, which is all before it.
    """
    wanted, read_whole = set(jaxpr.outvars), set()
    tail, head = [], []
    for equation in reversed(jaxpr.eqns):
        results = set(equation.outvars)
        step = _step(equation, rules) if results & wanted and not results & read_whole else None
        if step is None:
            head.append(equation)
        else:
            tail.append(step)
        is_split = [False] * len(equation.invars) if step is None else step.is_split
        for atom, is_slice in zip(equation.invars, is_split, strict=True):
            if not is_literal(atom):
                (wanted if is_slice else read_whole).add(atom)
    return tail[::-1], head[::-1]


def read_by(tail: Sequence[Step], result: Any) -> tuple[list, list]:
    """List the variables that the tail reads from the head: slice by slice, and whole."""
    made = {step.equation.outvars[0] for step in tail}
    split, whole = ({} if result in made or is_literal(result) else {result: None}), {}
    for step in tail:
        for atom, is_split in zip(step.equation.invars, step.is_split, strict=True):
            if not is_literal(atom) and atom not in made:
                (split if is_split else whole)[atom] = None
    return list(split), list(whole)


def evaluate(
    tail: Sequence[Step], split: Mapping[Any, Slices], whole: Mapping[Any, Any], result: Any
) -> Slices:
    """Evaluate the tail; return the slices of the result.

    Args:
      tail: from `cut`.
      split: slices of the variables that the tail reads slice by slice.
      whole: values of the variables that it reads whole. A variable may be in both.
      result: variable of the result.
    """
    slices = dict(split)

    def read(atom: Any, is_split: bool) -> Slices:
        return atom.val if is_literal(atom) else (slices if is_split else whole)[atom]

    for step in tail:
        operands = map(read, step.equation.invars, step.is_split)
        slices[step.equation.outvars[0]] = step.evaluate(list(operands))
    return slices[result]


def _step(equation: jex.core.JaxprEqn, rules: Rules) -> Step | None:
    rule = rules.get(equation.primitive.name)
    if rule is None or len(equation.outvars) > 1 or not rule.understands(equation.params):
        return None
    shapes, result = [shape_of(atom) for atom in equation.invars], equation.outvars[0]
    read = {name: equation.params[name] for name in rule.reads if name in equation.params}
    is_split = rule.split(shapes, shape_of(result), **read) if shape_of(result) else None
    if is_split is None:
        return None
    pairs = zip((result, *equation.invars), (True, *is_split), strict=True)
    if any(_is_divided(atom) for atom, is_slice in pairs if is_slice):
        return None
    return Step(equation, rule, is_split)


def _is_divided(atom: Any) -> bool:
    """Tell whether an explicit mesh axis divides axis 0, so that not all devices hold a slice."""
    spec = atom.aval.sharding.spec
    return bool(spec) and spec[0] is not None


def shape_of(atom: Any) -> Shape:
    """Return the shape of a variable or literal."""
    return getattr(atom.aval, "shape")  # noqa: B009 - not every aval has one


def is_literal(atom: Any) -> bool:
    """Tell a literal from a variable."""
    return isinstance(atom, jex.core.Literal)


def _listed(operand: Slices, length: int) -> list:
    return operand if isinstance(operand, list) else [operand] * length


# ---------------------------------------------------------------------------------------------
# Rules
# ---------------------------------------------------------------------------------------------


def _split_elementwise(operands: Sequence[Shape], result: Shape) -> list[bool] | None:
    # Scalars and axes of length 1 are repeated.
    if any(shape and len(shape) != len(result) for shape in operands):
        return None
    return [shape[:1] == result[:1] for shape in operands]


def _split_sum(operands: Sequence[Shape], _: Shape, *, axes: Sequence[int]) -> list[bool] | None:
    return [True] if 0 not in axes else None


def _split_broadcast(
    operands: Sequence[Shape], result: Shape, *, shape: Shape, broadcast_dimensions: Sequence[int]
) -> list[bool] | None:
    if len(operands) > 1:
        return None  # further operands are sizes that are not known
    return [0 in broadcast_dimensions and operands[0][0] == result[0]]


def _split_reshape(
    operands: Sequence[Shape],
    result: Shape,
    *,
    new_sizes: Shape,
    dimensions: Sequence[int] | None = None,
) -> list[bool] | None:
    if len(operands) > 1:
        return None
    if operands[0][:1] == result[:1] and (dimensions is None or dimensions[0] == 0):
        return [True]
    return [False] if result[0] == 1 else None


def _split_product(
    operands: Sequence[Shape], _: Shape, *, dimension_numbers: Any
) -> list[bool] | None:
    (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = dimension_numbers
    if lhs_batch:
        return [True, True] if lhs_batch[0] == rhs_batch[0] == 0 else None
    if len(lhs_contracted) < len(operands[0]):
        return [True, False] if 0 not in lhs_contracted else None
    return [False, True] if 0 not in rhs_contracted else None


def _split_convolution(_: Any, __: Any, *, dimension_numbers: Any) -> list[bool] | None:
    by_example = dimension_numbers.lhs_spec[0] == dimension_numbers.out_spec[0] == 0
    return [True, False] if by_example else None


def _split_gather(_: Any, __: Any, *, dimension_numbers: Any) -> list[bool] | None:
    numbers = dimension_numbers
    pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
    return [True, True] if (0, 0) in pairs and 0 not in numbers.offset_dims else None


def _split_window(
    operands: Sequence[Shape],
    _: Shape,
    *,
    padding: Sequence[tuple[int, int]],
    **sizes: Sequence[int],
) -> list[bool] | None:
    leaves_axis = tuple(padding[0]) == (0, 0) and all(size[0] == 1 for size in sizes.values())
    return [True] * len(operands) if leaves_axis else None


def _all_if(keeps_axis: Callable[..., bool]) -> Callable[..., list[bool] | None]:
    def split(operands: Sequence[Shape], result: Shape, **read: Any) -> list[bool] | None:
        return [True] * len(operands) if keeps_axis(operands[0], result, **read) else None

    return split


def _stacked(operands: Sequence[Slices], _: Sequence[int]) -> Slices:
    return [lax.expand_dims(operand, (0,)) for operand in operands]


def _concatenated(operands: Sequence[Slices], lengths: Sequence[int]) -> Slices:
    pairs = zip(operands, lengths, strict=True)
    return [part for operand, length in pairs for part in _listed(operand, length)]


_WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
_PLAIN = Rule(_split_elementwise)

# Arithmetic on elements, and what comes between it.
ARITHMETIC: Rules = {
    **dict.fromkeys(("add", "add_any", "sub", "neg", "div", "select_n", "copy"), _PLAIN),
    "mul": Rule(_split_elementwise, carries=("out_dtype",)),
    "convert_element_type": Rule(
        _split_elementwise, carries=("new_dtype", "weak_type"), requires={"sharding": None}
    ),
    "reduce_precision": Rule(_split_elementwise, carries=("exponent_bits", "mantissa_bits")),
    "reduce_sum": Rule(_split_sum, reads=("axes",), requires={"out_sharding": None}),
    "broadcast_in_dim": Rule(
        _split_broadcast,
        reads=("shape", "broadcast_dimensions"),
        requires={"sharding": None},
        resized="shape",
    ),
    "reshape": Rule(
        _split_reshape,
        reads=("new_sizes", "dimensions"),
        requires={"sharding": None},
        resized="new_sizes",
    ),
}

# Operations that put slices together.
JOINS: Rules = {
    "stack": Rule(
        lambda operands, _, *, axis: [False] * len(operands) if axis == 0 else None,
        reads=("axis",),
        join=_stacked,
    ),
    "concatenate": Rule(
        lambda operands, _, *, dimension: [True] * len(operands) if dimension == 0 else None,
        reads=("dimension",),
        join=_concatenated,
    ),
}

# Operations of layers on examples along axis 0.
LAYERS: Rules = {
    "dot_general": Rule(
        _split_product,
        reads=("dimension_numbers",),
        carries=("precision", "preferred_element_type"),
        requires={"out_sharding": None},
    ),
    "conv_general_dilated": Rule(
        _split_convolution,
        reads=("dimension_numbers",),
        carries=(
            *("window_strides", "padding", "lhs_dilation", "rhs_dilation"),
            *("feature_group_count", "precision", "preferred_element_type"),
        ),
        requires={"batch_group_count": 1, "out_sharding": None},
    ),
    "gather": Rule(
        _split_gather,
        reads=("dimension_numbers",),
        carries=("slice_sizes", "indices_are_sorted", "unique_indices", "mode", "fill_value"),
    ),
    "transpose": Rule(
        _all_if(lambda _, __, *, permutation: permutation[0] == 0), reads=("permutation",)
    ),
    "concatenate": Rule(_all_if(lambda _, __, *, dimension: dimension != 0), reads=("dimension",)),
    "squeeze": Rule(
        _all_if(lambda _, __, *, dimensions: 0 not in dimensions), reads=("dimensions",)
    ),
    # The same length before and after: from the beginning to the end.
    "slice": Rule(
        _all_if(lambda operand, result, **_: operand[0] == result[0]),
        carries=("start_indices", "strides", "limit_indices"),
        resized="limit_indices",
    ),
    "reduce_window_sum": Rule(_split_window, reads=_WINDOW),
    "select_and_gather_add": Rule(_split_window, reads=_WINDOW, carries=("select_prim",)),
}
