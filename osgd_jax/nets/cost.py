"""Parameters and multiply-adds of each output of an anytime net."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import Jaxpr, jaxprs_in_params
from jax.interpreters.partial_eval import dce_jaxpr
from jax.typing import DTypeLike

from osgd_jax.nets.tracing import (
    check_net,
    check_shape,
    steps,
    with_example,
)


class OutputCost(NamedTuple):
    """The cost of one output, together with all outputs before it.

    Attributes:
      parameters: numbers in the parameter arrays on which an output so far depends.
      multiply_adds: multiplications with addition for one example.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> osgd_jax.cost(net, (8, 8, 1))[-1]
      OutputCost(parameters=690, multiply_adds=39192)
    """

    parameters: int
    multiply_adds: int


def cost(
    net: Any, input_shape: Sequence[int], *, dtype: DTypeLike | None = None
) -> list[OutputCost]:
    """Count the parameters and multiply-adds up to each output of a net.

    The net is traced with shapes alone and may be abstract (from `nnx.eval_shape`), so large nets
    take a second or two.

    The entry for output k is cumulative along `start`, `advance(0)`, …, `advance(k)`, earlier heads
    included:

    - `parameters` is the size of all `nnx.Param` arrays on which at least one of the logits of the
      outputs 0 … k depends, each counted once. A parameter that only later outputs read does not
      count yet. Running averages of batch normalization are not parameters.
    - `multiply_adds` is the work of these calls for one example in matrix products and
      convolutions. As in the literature, a convolution counts every tap of its kernel at every
      position of its output, including taps on padding. Normalization, activation, pooling and
      addition do not count. Neither does work whose result is not in the logits or the carry,
      because the compiler removes it. A `lax.cond` counts as its most expensive branch, a
      `lax.scan` as its body times its length.

    Args:
      net: an `nnx.Module` with `num_outputs`, `start(x)` and `advance(k, carry)`.
      input_shape: shape of one example, without the batch axis.
      dtype: of the input; by default floating, or integers (token ids) where the net takes no
        floats.

    Returns:
      One `OutputCost` for each output.

    Raises:
      ValueError: the net does not take this shape or lacks one of the three attributes, or a
        `lax.while_loop` does multiply-adds an unknown number of times.

    Example:
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> [(output.parameters, output.multiply_adds) for output in osgd_jax.cost(net, (8, 8, 1))]
      [(363, 20748), (690, 39192)]
    """
    check_net(net)
    shape = check_shape("input_shape", input_shape)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)

    def path(params: Any, rest: Any, x: jax.Array) -> list[Any]:
        return steps(nnx.merge(graphdef, params, rest, copy=True), x)

    trace = functools.partial(jax.make_jaxpr(path, return_shape=True), params, rest)
    closed, taken = with_example(trace, shape, dtype)
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(params)]
    # Of each step's results the first is the logits, the others are the carry.
    results = [(k, i) for k, step in enumerate(taken) for i, _ in enumerate(jax.tree.leaves(step))]

    costs = []
    for last in range(len(taken)):
        _, read = dce_jaxpr(closed.jaxpr, [k <= last and i == 0 for k, i in results])
        work, _ = dce_jaxpr(closed.jaxpr, [k <= last for k, _ in results])
        parameters = sum(size for size, is_read in zip(sizes, read, strict=False) if is_read)
        costs.append(OutputCost(parameters, _multiply_adds(work)))
    return costs


def _multiply_adds(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        params = equation.params
        inner = [_multiply_adds(sub) for sub in jaxprs_in_params(params)]
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
