"""The gradients of many losses that one operation returns as an array, by one pullback.

Each loss is followed back through those operations that treat the array's elements apart, such as
the layers of a net on one example each: there it needs its own slice of what they read. What comes
before them is common to all losses, and is pulled back for all at once, as `jax.jacrev` does.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.core import eval_jaxpr
from jax.interpreters import partial_eval as pe

from osgd_jax import _linear_program
from osgd_jax._linear_program import ELEMENTWISE, Program, is_literal, shape_of


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
    jaxpr = _linear_program.opened(program)
    tail, head = _linear_program.cut(jaxpr, split_operands)
    split, whole = _read_by(tail, jaxpr.outvars[0])
    linear = _linear_variables(jaxpr)
    ends = [v for v in (*whole, *split) if v in linear]
    pruned, used = pe.dce_jaxpr(jaxpr.replace(eqns=head, outvars=ends), [True] * len(ends))
    inputs = [index for index, is_used in enumerate(used) if is_used]
    if not inputs:
        return [None] * len(leaves)

    others = [v for v in (*whole, *split) if v not in linear]
    constant = eval_jaxpr(jaxpr.replace(eqns=head, outvars=others), program.consts, *leaves)
    known = dict(zip(others, constant, strict=True))
    of_whole, of_slices = _cotangents(tail, jaxpr.outvars[0], whole, split, known, losses)
    of_split = [_on_diagonal(slices) for slices in of_slices]

    types = [jax.typeof(leaves[index]) for index in inputs]
    head_of = functools.partial(eval_jaxpr, pruned, program.consts)
    rows = jax.vmap(jax.linear_transpose(head_of, *types))([*of_whole, *of_split])
    of_input = dict(zip(inputs, rows, strict=True))
    return [of_input.get(index) for index in range(len(leaves))]


def _cotangents(
    tail: list, result: Any, whole: list, split: list, known: dict, losses: jax.Array
) -> tuple[list, list]:
    """Pull each loss back through the tail.

    Returns:
      Of the linear variables that it reads whole, `[K, *shape]`, and of its slices of others, each
      `[K, 1, ...]`.
    """
    linear_whole = [v for v in whole if v not in known]
    linear_split = [v for v in split if v not in known]
    types = [v.aval for v in linear_whole]
    slice_types = [v.aval.update(shape=(1, *v.aval.shape[1:])) for v in linear_split]
    sliced = [v for v in split if v in known]

    def of_one(slices: list[jax.Array]) -> tuple[list, list]:
        fixed = {v: known[v] for v in whole if v in known} | dict(zip(sliced, slices, strict=True))

        def loss(of_whole: list, of_slices: list) -> jax.Array:
            given = dict(zip((*linear_whole, *linear_split), (*of_whole, *of_slices), strict=True))
            return _evaluate_one(tail, fixed | given, result).reshape(())

        return jax.linear_transpose(loss, types, slice_types)(jnp.ones_like(losses[0]))

    return jax.vmap(of_one, axis_size=len(losses))([known[v][:, None] for v in sliced])


def _evaluate_one(tail: list, values: dict, result: Any) -> jax.Array:
    """Evaluate the tail on slices of length one."""
    for equation in tail:
        operands = [a.val if is_literal(a) else values[a] for a in equation.invars]
        name, params = equation.primitive.name, dict(equation.params)
        sizes = {"broadcast_in_dim": "shape", "reshape": "new_sizes", "slice": "limit_indices"}
        if name in sizes:
            params[sizes[name]] = (1, *params[sizes[name]][1:])
        values = values | {equation.outvars[0]: equation.primitive.bind(*operands, **params)}
    return values[result]


def _on_diagonal(slices: jax.Array) -> jax.Array:
    """Put the slice of each task, `[K, 1, ...]`, in its place in the whole array, `[K, K, ...]`."""
    own = jnp.eye(len(slices), dtype=bool).reshape(2 * slices.shape[:1] + (1,) * (slices.ndim - 2))
    return jnp.where(own, slices, 0)


def _read_by(tail: list, result: Any) -> tuple[list, list]:
    """List what the tail reads from outside, slice by slice and whole."""
    made = {equation.outvars[0] for equation in tail}
    split, whole = ({} if result in made else {result: None}), {}
    for equation in tail:
        for atom, is_split in zip(equation.invars, split_operands(equation) or (), strict=True):
            if not is_literal(atom) and atom not in made:
                (split if is_split else whole)[atom] = None
    return list(split), list(whole)


def _linear_variables(jaxpr: jex.core.Jaxpr) -> set:
    linear = set(jaxpr.invars)
    for equation in jaxpr.eqns:
        if any(not is_literal(atom) and atom in linear for atom in equation.invars):
            linear.update(equation.outvars)
    return linear


def split_operands(equation: jex.core.JaxprEqn) -> list[bool] | None:
    """Find which operands a slice of length one of the result needs a slice of alone, if any.

    Both slices are of axis 0. The operation must be the same for slices of any length.
    """
    name, params = equation.primitive.name, equation.params
    shapes = [shape_of(atom) for atom in equation.invars]
    if len(equation.outvars) > 1 or not shape_of(equation.outvars[0]):
        return None
    if name == "dot_general":
        return _split_of_product(params["dimension_numbers"], len(shapes[0]))
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        by_example = numbers.lhs_spec[0] == numbers.out_spec[0] == 0
        return [True, False] if by_example and params["batch_group_count"] == 1 else None
    if name == "gather":
        numbers = params["dimension_numbers"]
        pairs = zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True)
        return [True, True] if (0, 0) in pairs and 0 not in numbers.offset_dims else None
    keeps_axis = {
        "transpose": lambda: params["permutation"][0] == 0,
        "concatenate": lambda: params["dimension"] != 0,
        "squeeze": lambda: 0 not in params["dimensions"],
        "slice": lambda: shapes[0][0] == shape_of(equation.outvars[0])[0],
        "reduce_window_sum": lambda: _leaves_axis(params),
        "select_and_gather_add": lambda: _leaves_axis(params),
    }
    if name in keeps_axis:
        return [True] * len(shapes) if keeps_axis[name]() else None
    if name in ELEMENTWISE or name in ("reduce_sum", "broadcast_in_dim", "reshape"):
        return _linear_program.split_operands(equation)
    return None


def _split_of_product(numbers: Any, lhs_ndim: int) -> list[bool] | None:
    (lhs_contracted, rhs_contracted), (lhs_batch, rhs_batch) = numbers
    if lhs_batch:
        return [True, True] if lhs_batch[0] == rhs_batch[0] == 0 else None
    if len(lhs_contracted) < lhs_ndim:
        return [True, False] if 0 not in lhs_contracted else None
    return [False, True] if 0 not in rhs_contracted else None


def _leaves_axis(params: dict[str, Any]) -> bool:
    dilations = [params[key][0] for key in ("base_dilation", "window_dilation")]
    sizes = [params[key][0] for key in ("window_dimensions", "window_strides")]
    return {*dilations, *sizes} == {1} and tuple(params["padding"][0]) == (0, 0)
