"""What each output of an anytime net costs: its parameters and its multiply-adds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr


class OutputCost(NamedTuple):
    """The cost of one output, together with all outputs before it.

    Attributes:
      parameters: numbers in the parameter arrays on which an output so far depends.
      multiply_adds: multiplications with addition for one example.
    """

    parameters: int
    multiply_adds: int


def cost(net: Any, input_shape: Sequence[int]) -> list[OutputCost]:
    """Count the parameters and multiply-adds that it takes to get to each output of a net.

    Nothing is computed: the net is traced with shapes alone, and may be abstract itself (made by
    `nnx.eval_shape`), so that large nets are counted in a second or two.

    The entry for output k is cumulative along `start`, `advance(0)`, …, `advance(k)`, earlier heads
    included:

    - `parameters` is the size of all `nnx.Param` arrays on which at least one of the logits of the
      outputs 0 … k depends, each counted once. A parameter that is read only for later outputs does
      not count yet; running averages of batch normalisation are no parameters.
    - `multiply_adds` is the work of these calls for one example in matrix products and
      convolutions. As in the literature a convolution counts every tap of its kernel at every
      position of its output, those that meet padding included, and normalisation, activation,
      pooling and addition count nothing. Work whose result is neither among the logits nor in the
      carry does not count, as the compiler leaves it out. A `lax.cond` counts as its dearest
      branch, a `lax.scan` as its body times its length.

    Args:
      net: an `nnx.Module` with `num_outputs`, `start(x)` and `advance(k, carry)`.
      input_shape: shape of one example, without the batch axis.

    Returns:
      One `OutputCost` for each output.

    Raises:
      ValueError: the net does not take this shape or lacks one of the three attributes, or a
        `lax.while_loop` does multiply-adds an unknown number of times.
    """
    for name in ("num_outputs", "start", "advance"):
        if not hasattr(net, name):
            raise ValueError(
                f"net is a {type(net).__name__} without {name}; it must have num_outputs, start and"
                " advance, as an AnytimeNet has."
            )
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def path(params: Any, rest: Any, x: jax.Array) -> list[Any]:
        merged = nnx.merge(graphdef, params, rest, copy=True)
        carry = merged.start(x)
        steps = []
        for k in range(merged.num_outputs):
            logits, carry = merged.advance(k, carry)
            steps.append((logits, carry))
        return steps

    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.result_type(float))
    closed, steps = jax.make_jaxpr(path, return_shape=True)(params, rest, x)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    # Of each step's results the first is the logits, the others are the carry.
    results = [(k, i) for k, step in enumerate(steps) for i, _ in enumerate(jax.tree.leaves(step))]

    costs = []
    for last in range(len(steps)):
        _, read = dce_jaxpr(closed.jaxpr, [k <= last and i == 0 for k, i in results])
        work, _ = dce_jaxpr(closed.jaxpr, [k <= last for k, _ in results])
        parameters = sum(size for size, is_read in zip(sizes, read, strict=False) if is_read)
        costs.append(OutputCost(parameters, _multiply_adds(work)))
    return costs


def _multiply_adds(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        inner = [_multiply_adds(sub) for value in params.values() for sub in _jaxprs(value)]
        match equation.primitive.name:
            case "dot_general":
                (contracted, _), _ = params["dimension_numbers"]
                left = _shape(equation.invars[0])
                taps = math.prod(left[axis] for axis in contracted)
                total += taps * math.prod(_shape(equation.outvars[0]))
            case "conv_general_dilated":
                kernel = _shape(equation.invars[1])
                taps = math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]]
                total += taps * math.prod(_shape(equation.outvars[0]))
            case "scan":
                total += params["length"] * sum(inner)
            case "cond":
                total += max(inner)
            case "while":
                if sum(inner) > 0:
                    raise ValueError(
                        "net has a lax.while_loop with matrix products or convolutions, whose"
                        " number depends on the data. Use lax.scan or a lax.fori_loop with fixed"
                        " bounds."
                    )
            case _:
                total += sum(inner)
    return total


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _jaxprs(value: Any) -> list[Jaxpr]:
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _jaxprs(item)]
    return []
