"""The layers that each output of a net computes and reads, laid out for `plots.nesting`."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax.extend.core import Jaxpr, Literal, jaxprs_in_params

from osgd_jax.nets.tracing import (
    check_net,
    check_shape,
    steps,
    with_example,
)

_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call"}
_CALLS |= {"custom_vjp_call", "custom_vjp_call_jaxpr"}
_LAYERS = {"conv_general_dilated", "dot_general"}


class Layer(NamedTuple):
    """A convolution or matrix product: the layers that it reads, and its output channels."""

    sources: frozenset[int]
    channels: int


class Diagram(NamedTuple):
    """Layers in rows, one for each output.

    Attributes:
      channels: output channels of each layer.
      rows: the first output that needs each layer.
      places: where each layer stands.
      lines: pairs of a layer and one that reads it, less pairs that follow from others.
      heads: the last layer of each output.
    """

    channels: list[int]
    rows: list[int]
    places: list[tuple[float, float]]
    lines: list[tuple[int, int]]
    heads: list[int]


def diagram(net: Any, input_shape: Sequence[int]) -> Diagram:
    """Trace a net and place each of its layers."""
    layers, heads = _layers_of(net, input_shape)
    rows = _rows(layers, heads)
    return Diagram(
        channels=[layer.channels for layer in layers],
        rows=rows,
        places=_places(layers, rows),
        lines=[
            (source, target)
            for target, sources in enumerate(_without_shortcuts(layers))
            for source in sources
        ],
        heads=[max(head) for head in heads],
    )


def _layers_of(net: Any, input_shape: Sequence[int]) -> tuple[list[Layer], list[frozenset[int]]]:
    """List all layers in an order of computation, and the layers that each output comes from."""
    check_net(net)
    graphdef, state = nnx.split(net)

    def outputs(state: Any, x: jax.Array) -> list[jax.Array]:
        return [logits for logits, _ in steps(nnx.merge(graphdef, state, copy=True), x)]

    trace = functools.partial(jax.make_jaxpr(outputs), state)
    jaxpr = with_example(trace, check_shape("input_shape", input_shape), None).jaxpr
    layers: list[Layer] = []
    heads = _walk(jaxpr, [frozenset()] * len(jaxpr.invars), layers)
    return layers, heads


def _walk(jaxpr: Jaxpr, inputs: list[frozenset[int]], layers: list[Layer]) -> list[frozenset[int]]:
    """Append the layers of a program; return the layers that each result comes from.

    Args:
      jaxpr: the program.
      inputs: the layers that each of its arguments comes from.
      layers: is extended.
    """
    origin = dict(zip(jaxpr.invars, inputs, strict=True))

    def origin_of(variable: Any) -> frozenset[int]:
        return frozenset() if isinstance(variable, Literal) else origin.get(variable, frozenset())

    for equation in jaxpr.eqns:
        read = [origin_of(variable) for variable in equation.invars]
        inner = list(jaxprs_in_params(equation.params))
        if equation.primitive.name in _CALLS and len(inner) == 1:
            written = _walk(inner[0], read, layers)
        elif equation.primitive.name in _LAYERS or any(map(_has_layer, inner)):
            aval: Any = equation.outvars[0].aval
            layers.append(Layer(frozenset().union(*read), aval.shape[-1]))
            written = [frozenset({len(layers) - 1})] * len(equation.outvars)
        else:
            written = [frozenset().union(*read)] * len(equation.outvars)
        origin.update(zip(equation.outvars, written, strict=True))
    return [origin_of(variable) for variable in jaxpr.outvars]


def _has_layer(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in _LAYERS
        or any(map(_has_layer, jaxprs_in_params(equation.params)))
        for equation in jaxpr.eqns
    )


def _ancestors(layers: list[Layer]) -> list[frozenset[int]]:
    """Find all layers on which each layer depends."""
    found: list[frozenset[int]] = []
    for layer in layers:
        found.append(layer.sources.union(*(found[source] for source in layer.sources)))
    return found


def _without_shortcuts(layers: list[Layer]) -> list[frozenset[int]]:
    """Find the sources of each layer, less sources on which another source depends."""
    ancestors = _ancestors(layers)
    return [
        layer.sources.difference(*(ancestors[source] for source in layer.sources))
        for layer in layers
    ]


def _rows(layers: list[Layer], heads: list[frozenset[int]]) -> list[int]:
    """Find the first output that depends on each layer; the last one if none does."""
    ancestors = _ancestors(layers)
    needed = [head.union(*(ancestors[layer] for layer in head)) for head in heads]
    return [
        next((row for row, layers in enumerate(needed) if index in layers), len(heads) - 1)
        for index in range(len(layers))
    ]


def _places(layers: list[Layer], rows: list[int]) -> list[tuple[float, float]]:
    """Place each layer in its row, right of all that it reads; spread layers at one place."""
    depth: list[int] = []
    for layer in layers:
        depth.append(1 + max((depth[source] for source in layer.sources), default=-1))
    spots = list(zip(depth, rows, strict=True))
    places = []
    for index, (x, row) in enumerate(spots):
        count, before = spots.count((x, row)), spots[:index].count((x, row))
        spread = 0.0 if count == 1 else before / (count - 1) - 0.5
        places.append((float(x), row + spread * min(0.7, 0.3 * math.sqrt(count))))
    return places
