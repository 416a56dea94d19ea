"""Rules for operations on arrays: which slices of the operands a slice of the result reads."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.extend as jex
from jax import lax

from osgd_jax._gradients.slicing import Along, Division, Plan, Rule, Rules, Shape, shape_of

# The axis of an operand whose slices are read, or None for an operand that is read whole.
Axis = int | None
# From the shapes of the operands, the shape of a result, the slices of it and parameters by
# keyword to an axis of each operand; None where slices cannot be computed one by one.
FindAxes = Callable[..., Sequence[Axis] | None]


def _rule(
    axes: FindAxes,
    reads: Sequence[str] = (),
    carries: Sequence[str] = (),
    required: Mapping[str, Any] = {},
    resized: tuple[str, int | None] | None = None,
) -> Rule:
    """Make the rule of an operation that is the same for a slice as for the whole.

    Args:
      axes: finds the axes of the operands.
      reads: parameters that `axes` takes.
      carries: parameters that mean the same for a slice, whatever their value.
      required: parameters that must have the value given here.
      resized: the parameter that lists sizes, and the index of the operand whose sizes they are,
        None for the result. The size of a slice takes the place of the length of the axis.
    """

    def plan(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
        along = next(filter(None, results))
        if any(by not in (along, None) for by in results):
            return None
        result = shape_of(equation.outvars[list(results).index(along)])
        read = {name: equation.params[name] for name in reads if name in equation.params}
        shapes = [shape_of(atom) for atom in equation.invars]
        found = axes(shapes, result, along, **read)
        if found is None:
            return None
        params = dict(equation.params)
        if resized is not None:
            name, of = resized
            axis, shape = (along.axis, result) if of is None else (found[of], shapes[of])
            if axis is not None and params[name][axis] == shape[axis]:
                params[name] = Along(axis, along.parts).slice_shape(params[name])

        def evaluate(operands: Sequence[Any]) -> Sequence[Any]:
            value = equation.primitive.bind(*operands, **params)
            return value if equation.primitive.multiple_results else [value]

        return [None if a is None else Along(int(a), along.parts) for a in found], evaluate

    return Rule(plan, frozenset((*reads, *carries, *(resized or ())[:1])), required)


def _elementwise(operands: Sequence[Shape], result: Shape, along: Along) -> Sequence[Axis] | None:
    # Scalars and axes of length 1 are repeated.
    if any(shape and len(shape) != len(result) for shape in operands):
        return None
    axis = along.axis
    return [axis if shape and shape[axis] == result[axis] else None for shape in operands]


def _reduction(_: Any, result: Shape, along: Along, *, axes: Sequence[int]) -> Sequence[Axis]:
    kept = [axis for axis in range(len(result) + len(axes)) if axis not in axes]
    return [kept[along.axis]]


def _squeeze(_: Any, result: Shape, along: Along, *, dimensions: Sequence[int]) -> Sequence[Axis]:
    return _reduction(_, result, along, axes=dimensions)


def _broadcast(
    operands: Sequence[Shape],
    result: Shape,
    along: Along,
    *,
    shape: Shape,
    broadcast_dimensions: Sequence[int],
) -> Sequence[Axis] | None:
    if len(operands) > 1:
        return None  # further operands are sizes that are not known
    if along.axis not in broadcast_dimensions:
        return [None]
    axis = list(broadcast_dimensions).index(along.axis)
    return [axis if operands[0][axis] == result[along.axis] else None]


def _reshape(
    operands: Sequence[Shape],
    result: Shape,
    along: Along,
    *,
    new_sizes: Shape,
    dimensions: Sequence[int] | None = None,
) -> Sequence[Axis] | None:
    if len(operands) > 1:
        return None
    if along.parts == 1:
        return [None]
    order = range(len(operands[0])) if dimensions is None else dimensions
    # The same number of elements before the axis, and so behind it: the slices are the same ones.
    before, passed = math.prod(result[: along.axis]), 1
    for axis in order:
        length = operands[0][axis]
        if passed == before and length > 1:
            return [axis] if length % along.parts == 0 else None
        passed *= length
    return None


def _product(
    operands: Sequence[Shape], _: Any, along: Along, *, dimension_numbers: Any
) -> Sequence[Axis]:
    contracted, batch = dimension_numbers
    if along.axis < len(batch[0]):
        return [batch[0][along.axis], batch[1][along.axis]]
    free = [
        (side, axis)
        for side in (0, 1)
        for axis in range(len(operands[side]))
        if axis not in (*contracted[side], *batch[side])
    ]
    side, axis = free[along.axis - len(batch[0])]
    return [axis if side == 0 else None, axis if side == 1 else None]


def _convolution(_: Any, __: Any, along: Along, *, dimension_numbers: Any) -> Sequence[Axis] | None:
    numbers = dimension_numbers
    return [numbers.lhs_spec[0], None] if along.axis == numbers.out_spec[0] else None


def _gather(
    operands: Sequence[Shape],
    result: Shape,
    along: Along,
    *,
    dimension_numbers: Any,
    slice_sizes: Shape,
) -> Sequence[Axis] | None:
    numbers = dimension_numbers
    batching, dropped = numbers.operand_batching_dims, numbers.collapsed_slice_dims
    if along.axis in numbers.offset_dims:
        kept = [a for a in range(len(operands[0])) if a not in (*batching, *dropped)]
        axis = kept[list(numbers.offset_dims).index(along.axis)]
        is_all = slice_sizes[axis] == operands[0][axis] and axis not in numbers.start_index_map
        return [axis, None] if is_all else None
    # The last axis of the indices holds the coordinates.
    places = [axis for axis in range(len(result)) if axis not in numbers.offset_dims]
    axis = places.index(along.axis)
    pairs = dict(zip(numbers.start_indices_batching_dims, batching, strict=True))
    return [pairs.get(axis), axis]


def _scatter(
    operands: Sequence[Shape], _: Any, along: Along, *, dimension_numbers: Any
) -> Sequence[Axis] | None:
    numbers = dimension_numbers
    batching, dropped = numbers.operand_batching_dims, numbers.inserted_window_dims
    operand, _, updates = operands
    if along.axis in batching:
        pair = list(batching).index(along.axis)
        axis = numbers.scatter_indices_batching_dims[pair]
        places = [a for a in range(len(updates)) if a not in numbers.update_window_dims]
        return [along.axis, axis, places[axis]]
    if along.axis in (*dropped, *numbers.scatter_dims_to_operand_dims):
        return None
    kept = [a for a in range(len(operand)) if a not in (*batching, *dropped)]
    axis = numbers.update_window_dims[kept.index(along.axis)]
    return [along.axis, None, axis] if updates[axis] == operand[along.axis] else None


def _pad(
    _: Any, __: Any, along: Along, *, padding_config: Sequence[tuple[int, int, int]]
) -> Sequence[Axis] | None:
    is_kept = tuple(padding_config[along.axis]) == (0, 0, 0)
    return [along.axis, None] if is_kept else None


def _stack(operands: Sequence[Shape], _: Any, along: Along, *, axis: int) -> Sequence[Axis] | None:
    of_parts = along.axis - (along.axis > axis)
    return [of_parts] * len(operands) if along.axis != axis else None


def _whole_axis(operands: Sequence[Shape], result: Shape, along: Along) -> Sequence[Axis] | None:
    """The first operands and the result have the axis at full length; scalars say where from."""
    axis = along.axis
    is_kept = all(not shape or shape[axis] == result[axis] for shape in operands)
    return [axis if shape else None for shape in operands] if is_kept else None


def _window(equation: jex.core.JaxprEqn, results: Sequence[Division]) -> Plan | None:
    (along,) = results
    sizes = {name: equation.params[name] for name in _WINDOW}
    padding = sizes.pop("padding")
    if along is None or tuple(padding[along.axis]) != (0, 0):
        return None
    if any(size[along.axis] != 1 for size in sizes.values()):
        return None
    axis, params = along.axis, dict(equation.params)
    shape = shape_of(equation.outvars[0])
    is_one = shape[axis] == along.parts and len(shape) > 1
    if is_one:
        # An axis of length 1 would be one coordinate more of each maximum's place.
        of_others = {name: (*v[:axis], *v[axis + 1 :]) for name, v in sizes.items()}
        params |= of_others | {"padding": (*padding[:axis], *padding[axis + 1 :])}

    def evaluate(operands: Sequence[Any]) -> Sequence[Any]:
        if not is_one:
            return [equation.primitive.bind(*operands, **params)]
        inner = [lax.squeeze(operand, (axis,)) for operand in operands]
        return [lax.expand_dims(equation.primitive.bind(*inner, **params), (axis,))]

    return [along] * len(equation.invars), evaluate


def _other_than(parameter: str) -> FindAxes:
    """The operation takes place along the axis or axes that a parameter names."""

    def axes(operands: Sequence[Shape], _: Any, along: Along, **read: Any) -> Sequence[Axis] | None:
        named = read[parameter]
        is_named = along.axis in (named if isinstance(named, Sequence) else (named,))
        return None if is_named else [along.axis] * len(operands)

    return axes


def _along(parameter: str, carries: Sequence[str] = ()) -> Rule:
    return _rule(_other_than(parameter), reads=(parameter,), carries=carries)


_WINDOW = ("window_dimensions", "window_strides", "padding", "base_dilation", "window_dilation")
_SCATTER = ("indices_are_sorted", "unique_indices", "mode", "update_jaxpr", "update_consts")
_PLAIN = _rule(_elementwise)

# Arithmetic on elements, and what comes between it.
ARITHMETIC: Rules = {
    **dict.fromkeys(("add", "add_any", "sub", "neg", "div", "select_n", "copy"), _PLAIN),
    "mul": _rule(_elementwise, carries=("out_dtype",)),
    "convert_element_type": _rule(
        _elementwise, carries=("new_dtype", "weak_type"), required={"sharding": None}
    ),
    "reduce_precision": _rule(_elementwise, carries=("exponent_bits", "mantissa_bits")),
    "reduce_sum": _rule(_reduction, reads=("axes",), required={"out_sharding": None}),
    "broadcast_in_dim": _rule(
        _broadcast,
        reads=("shape", "broadcast_dimensions"),
        required={"sharding": None},
        resized=("shape", None),
    ),
    "reshape": _rule(
        _reshape,
        reads=("new_sizes", "dimensions"),
        required={"sharding": None},
        resized=("new_sizes", None),
    ),
}

# Functions of elements, which a `jax.checkpoint` computes again.
_FUNCTIONS = (
    *("exp", "exp2", "log", "log1p", "expm1", "tanh", "logistic", "sin", "cos", "tan", "sqrt"),
    *("rsqrt", "cbrt", "square", "pow", "max", "min", "abs", "sign", "floor", "ceil", "clamp"),
    *("erf", "erfc", "erf_inv", "lgamma", "digamma", "asin", "acos", "atan", "atan2", "sinh"),
    *("cosh", "asinh", "acosh", "atanh", "is_finite", "eq", "ne", "lt", "le", "gt", "ge", "and"),
    *("or", "xor", "not", "real", "imag", "complex", "rem", "stop_gradient"),
)

# Operations of layers and losses on examples.
LAYERS: Rules = {
    "dot_general": _rule(
        _product,
        reads=("dimension_numbers",),
        carries=("precision", "preferred_element_type"),
        required={"out_sharding": None},
    ),
    "conv_general_dilated": _rule(
        _convolution,
        reads=("dimension_numbers",),
        carries=(
            *("window_strides", "padding", "lhs_dilation", "rhs_dilation"),
            *("feature_group_count", "precision", "preferred_element_type"),
        ),
        required={"batch_group_count": 1, "out_sharding": None},
    ),
    "gather": _rule(
        _gather,
        reads=("dimension_numbers", "slice_sizes"),
        carries=("indices_are_sorted", "unique_indices", "mode", "fill_value"),
        resized=("slice_sizes", 0),
    ),
    **dict.fromkeys(
        ("scatter", "scatter-add"), _rule(_scatter, reads=("dimension_numbers",), carries=_SCATTER)
    ),
    "transpose": _rule(
        lambda _, __, along, *, permutation: [permutation[along.axis]], reads=("permutation",)
    ),
    "concatenate": _along("dimension"),
    "stack": _rule(_stack, reads=("axis",)),
    "split": _along("axis", carries=("sizes",)),
    "rev": _along("dimensions"),
    "squeeze": _rule(_squeeze, reads=("dimensions",)),
    **dict.fromkeys(
        ("cumsum", "cumlogsumexp", "cumprod", "cummax", "cummin"),
        _along("axis", carries=("reverse",)),
    ),
    **dict.fromkeys(
        ("reduce_max", "reduce_min", "reduce_prod"),
        _rule(_reduction, reads=("axes",), required={"out_sharding": None}),
    ),
    **dict.fromkeys(("argmax", "argmin"), _rule(_reduction, ("axes",), ("index_dtype",))),
    "pad": _rule(_pad, reads=("padding_config",)),
    # The same length before and after: from the beginning to the end.
    "slice": _rule(_whole_axis, carries=("start_indices", "strides"), resized=("limit_indices", 0)),
    "dynamic_slice": _rule(_whole_axis, resized=("slice_sizes", 0)),
    "dynamic_update_slice": _rule(_whole_axis),
    "reduce_window_sum": Rule(_window, frozenset(_WINDOW)),
    "select_and_gather_add": Rule(_window, frozenset((*_WINDOW, "select_prim"))),
    **dict.fromkeys(_FUNCTIONS, _rule(_elementwise, required={"accuracy": None})),
    "integer_pow": _rule(_elementwise, carries=("y",)),
}
