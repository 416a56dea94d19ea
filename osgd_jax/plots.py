"""Drawings: anytime curves, the conflict between tasks over time, what a nested net contains.

They need matplotlib, which is imported when a function is called: `pip install matplotlib`. Each
draws into the given axes, or into new ones, and returns them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CALLS = {"jit", "pjit", "closed_call", "remat2", "checkpoint", "custom_jvp_call"}
_CALLS |= {"custom_vjp_call", "custom_vjp_call_jaxpr"}
_LAYERS = {"conv_general_dilated", "dot_general"}


def anytime_curve(
    costs: Any,
    accuracy: Any,
    *,
    error: Any = None,
    label: str | None = None,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """Draw the accuracy of each output against what it costs to get there.

    Call it again with the same `axes` for another curve.

    Args:
      costs: K costs, such as multiply-adds or seconds; the axis is logarithmic.
      accuracy: K accuracies.
      error: K errors, drawn as bars; those that are not a number are left out.
      label: of the curve in the legend.
      axes: where to draw.
      **style: as for `matplotlib.axes.Axes.errorbar`, such as `color` or `linestyle`.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: the arguments are not K numbers each, or a cost is not positive.
    """
    axes = _axes(axes)
    costs, accuracy = np.asarray(costs, float), np.asarray(accuracy, float)
    error = None if error is None else np.nan_to_num(np.asarray(error, float))
    shapes = [each.shape for each in (costs, accuracy, error) if each is not None]
    if costs.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(f"costs, accuracy and error must be K numbers each; got shapes {shapes}.")
    if not (costs > 0).all():
        raise ValueError(f"costs={costs.tolist()} must be positive, for a logarithmic axis.")
    from matplotlib.ticker import EngFormatter

    axes.set_xscale("log")
    axes.errorbar(costs, accuracy, error, label=label, **{"marker": "o", "capsize": 3} | style)
    axes.set_xticks(costs, [EngFormatter()(float(f"{cost:.3g}")) for cost in costs])
    axes.minorticks_off()
    axes.set_xlabel("multiply-adds per example, up to each output")
    axes.set_ylabel("accuracy")
    axes.grid(alpha=0.3)
    return axes


def cosines(steps: Any, values: Any, *, axes: "Axes | None" = None) -> "Axes":
    """Draw the cosines between the task gradients over time, one line for each pair of tasks.

    Args:
      steps: T steps.
      values: `[T, K, K]`, what `osgd_jax.task_cosines` gave at each of them.
      axes: where to draw.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: `values` is not `[T, K, K]` with K >= 2.
    """
    axes = _axes(axes)
    steps, values = np.asarray(steps), np.asarray(values)
    fits = values.ndim == 3 and values.shape[1] == values.shape[2] >= 2
    if not fits or steps.shape != values.shape[:1]:
        raise ValueError(
            "values must be [T, K, K] with K >= 2, one matrix for each of T steps; got shape"
            f" {values.shape} for steps of shape {steps.shape}."
        )
    for i, j in zip(*np.triu_indices(values.shape[1], 1), strict=True):
        axes.plot(steps, values[:, i, j], label=f"tasks {i} and {j}")
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("step")
    axes.set_ylabel("cosine between gradients")
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def nesting(net: Any, input_shape: Sequence[int], *, axes: "Axes | None" = None) -> "Axes":
    """Draw what each output of an anytime net computes, and what it takes from earlier outputs.

    The drawing is made from the traced net, not from its name: every convolution or matrix product
    is a box, as high as it has channels, in the row of the first output that needs it, and to the
    right of all that it needs. Lines say which results a layer reads; coloured ones cross from one
    row to another: results of an earlier output that a later one uses again. Lines that follow from
    others are left out. In a nested net no line leads down.

    Args:
      net: an `nnx.Module` with `num_outputs`, `start(x)` and `advance(k, carry)`.
      input_shape: of one example, without the batch axis.
      axes: where to draw.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: the net does not take this shape.
    """
    axes = _axes(axes)
    layers, heads = _layers_of(net, input_shape)
    reduced = _without_shortcuts(layers)
    rows = _rows(layers, heads)
    places = _places(layers, rows)
    colors = [f"C{row}" for row in range(len(heads))]
    for target, sources in enumerate(reduced):
        for source in sources:
            crosses = rows[source] != rows[target]
            axes.plot(
                *zip(places[source], places[target], strict=True),
                color=colors[rows[source]] if crosses else "0.6",
                linewidth=1.2 if crosses else 1,
                zorder=1,
            )
    most = max(layer.channels for layer in layers)
    for index, layer in enumerate(layers):
        x, y = places[index]
        height = 0.06 + 0.32 * layer.channels / most
        axes.bar(x, height, 0.5, y - height / 2, color=colors[rows[index]], zorder=2)
    for row, head in enumerate(heads):
        x, y = places[max(head)]
        axes.annotate(f"output {row}", (x + 0.4, y), va="center")
    axes.set_xlim(-0.7, 1.15 * max(x for x, _ in places) + 0.6)
    axes.set_ylim(-0.5, len(heads) - 0.5)
    axes.set_yticks(range(len(heads)), [f"stage {row}" for row in range(len(heads))])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layers in sequence, from the input on the left")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


class _Layer(NamedTuple):
    """A convolution or matrix product: the layers that it reads, and its output channels."""

    sources: frozenset[int]
    channels: int


def _axes(axes: "Axes | None") -> "Axes":
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("osgd_jax.plots needs matplotlib: pip install matplotlib") from None
    return pyplot.subplots(layout="constrained")[1] if axes is None else axes


def _layers_of(net: Any, input_shape: Sequence[int]) -> tuple[list[_Layer], list[frozenset[int]]]:
    """All layers, each after what it reads, and those that each output comes from."""
    graphdef, state = nnx.split(net)

    def outputs(state: Any, x: jax.Array) -> list[jax.Array]:
        merged = nnx.merge(graphdef, state, copy=True)
        carry, logits = merged.start(x), []
        for k in range(merged.num_outputs):
            output, carry = merged.advance(k, carry)
            logits.append(output)
        return logits

    x = jax.ShapeDtypeStruct((1, *input_shape), jnp.result_type(float))
    jaxpr = jax.make_jaxpr(outputs)(state, x).jaxpr
    layers: list[_Layer] = []
    heads = _walk(jaxpr, [frozenset()] * len(jaxpr.invars), layers)
    return layers, heads


def _walk(jaxpr: Jaxpr, inputs: list[frozenset[int]], layers: list[_Layer]) -> list[frozenset[int]]:
    """Append the layers of a program; give the layers that each of its results comes from.

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
        inner = list(_programs(equation.params))
        if equation.primitive.name in _CALLS and len(inner) == 1:
            written = _walk(inner[0], read, layers)
        elif equation.primitive.name in _LAYERS or any(map(_has_layer, inner)):
            aval: Any = equation.outvars[0].aval
            layers.append(_Layer(frozenset().union(*read), aval.shape[-1]))
            written = [frozenset({len(layers) - 1})] * len(equation.outvars)
        else:
            written = [frozenset().union(*read)] * len(equation.outvars)
        origin.update(zip(equation.outvars, written, strict=True))
    return [origin_of(variable) for variable in jaxpr.outvars]


def _programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item


def _has_layer(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name in _LAYERS or any(map(_has_layer, _programs(equation.params)))
        for equation in jaxpr.eqns
    )


def _ancestors(layers: list[_Layer]) -> list[frozenset[int]]:
    """All layers on which each layer depends."""
    found: list[frozenset[int]] = []
    for layer in layers:
        found.append(layer.sources.union(*(found[source] for source in layer.sources)))
    return found


def _without_shortcuts(layers: list[_Layer]) -> list[frozenset[int]]:
    """The sources of each layer, less those on which another source depends."""
    ancestors = _ancestors(layers)
    return [
        layer.sources.difference(*(ancestors[source] for source in layer.sources))
        for layer in layers
    ]


def _rows(layers: list[_Layer], heads: list[frozenset[int]]) -> list[int]:
    """The first output that depends on each layer; the last, where none does."""
    ancestors = _ancestors(layers)
    needed = [head.union(*(ancestors[layer] for layer in head)) for head in heads]
    return [
        next((row for row, layers in enumerate(needed) if index in layers), len(heads) - 1)
        for index in range(len(layers))
    ]


def _places(layers: list[_Layer], rows: list[int]) -> list[tuple[float, float]]:
    """Right of all that a layer reads, in its row; layers at one place are spread out."""
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
