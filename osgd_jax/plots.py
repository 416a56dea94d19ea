"""Figures of anytime curves, conflict between tasks over time, and nested nets.

They need matplotlib (`pip install matplotlib`), which is imported when a function is called. Each
function draws into the given axes, or into new ones, and returns them.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from osgd_jax._balancing.diagnose import Diagnosis
from osgd_jax.nets.diagram import diagram

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["anytime_curve", "cosines", "nesting"]


def anytime_curve(
    costs: Any,
    accuracy: Any,
    *,
    error: Any = None,
    label: str | None = None,
    axes: "Axes | None" = None,
    **style: Any,
) -> "Axes":
    """Draw the accuracy of each output against the cost up to it.

    Call it again with the same `axes` for another curve.

    Args:
      costs: K costs, such as multiply-adds or seconds; the axis is logarithmic.
      accuracy: K accuracies.
      error: K errors, drawn as bars; NaN is left out.
      label: of the curve in the legend.
      axes: where to draw.
      **style: as for `matplotlib.axes.Axes.errorbar`, such as `color` or `linestyle`.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: the arguments are not K numbers each, or a cost is not positive.

    Example:
      >>> from matplotlib.figure import Figure
      >>> from osgd_jax import plots
      >>> axes = Figure().subplots()
      >>> axes = plots.anytime_curve([1e6, 4e6], [0.81, 0.86], axes=axes, label="OSGD")
      >>> axes.get_xscale()
      'log'
    """
    axes = _axes(axes)
    costs, accuracy = _numbers("costs", costs), _numbers("accuracy", accuracy)
    error = None if error is None else np.nan_to_num(_numbers("error", error))
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


def cosines(
    steps: Any,
    values: Any,
    *,
    names: Sequence[str] | None = None,
    unbiased: Sequence[Diagnosis] = (),
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw the cosines between the task gradients over time, one line for each pair of tasks.

    Gradients of one batch share its noise, so their cosines do not tell whether the losses agree;
    `unbiased` adds the cosines of the true gradients.

    Args:
      steps: T steps.
      values: `[T, K, K]`, what `osgd_jax.task_cosines` gave at each of them.
      names: of the tasks, as from `osgd_jax.task_names`; numbers from 0 if None.
      unbiased: what `osgd_jax.diagnose(..., cross=)` gave for consecutive windows of equally many
        of these steps. Each unbiased cosine is drawn in the middle of its window, with a bar for
        its interval.
      axes: where to draw.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: `values` is not `[T, K, K]` with K >= 2, there are not K names, or `unbiased` is
        not of K tasks.

    Example:
      >>> import numpy as np
      >>> from matplotlib.figure import Figure
      >>> from osgd_jax import plots
      >>> values = np.array([[[1.0, -0.2], [-0.2, 1.0]], [[1.0, 0.1], [0.1, 1.0]]])
      >>> axes = plots.cosines([0, 100], values, names=("ic", "pde"), axes=Figure().subplots())
      >>> len(axes.lines) > 0
      True
    """
    axes = _axes(axes)
    steps, values = _numbers("steps", steps), _numbers("values", values)
    fits = values.ndim == 3 and values.shape[1] == values.shape[2] >= 2
    if not fits or steps.shape != values.shape[:1]:
        raise ValueError(
            "values must be [T, K, K] with K >= 2, one matrix for each of T steps; got shape"
            f" {values.shape} for steps of shape {steps.shape}."
        )
    if names is not None and len(names) != values.shape[1]:
        raise ValueError(f"names={names} must be {values.shape[1]} names, one for each task.")
    for found in unbiased:
        if found.unbiased_cosines.shape != values.shape[1:]:
            raise ValueError(
                f"unbiased must be diagnoses of {values.shape[1]} tasks, got one of"
                f" {len(found.tasks)}."
            )
    for i, j in itertools.combinations(range(values.shape[1]), 2):
        pair = f"tasks {i} and {j}" if names is None else f"{names[i]} and {names[j]}"
        (line,) = axes.plot(steps, values[:, i, j], label=pair)
        if unbiased:
            _intervals(axes, steps, unbiased, (i, j), line.get_color())
    axes.axhline(0, color="0.5", linewidth=1)
    axes.set_ylim(-1.05, 1.05)
    axes.set_xlabel("step")
    axes.set_ylabel("cosine between gradients")
    axes.grid(alpha=0.3)
    axes.legend()
    return axes


def _intervals(
    axes: "Axes",
    steps: np.ndarray,
    windows: Sequence[Diagnosis],
    pair: tuple[int, int],
    color: Any,
) -> None:
    middles = [window.mean() for window in np.array_split(steps, len(windows))]
    cosines = np.array([found.unbiased_cosines[pair] for found in windows])
    low, high = np.array([found.cosine_intervals[pair] for found in windows]).T
    axes.vlines(middles, low, high, color=color)
    axes.plot(middles, cosines, "o", color=color)


def nesting(net: Any, input_shape: Sequence[int], *, axes: "Axes | None" = None) -> "Axes":
    """Draw the layers that each output of an anytime net computes and reuses.

    The figure comes from the traced net: each convolution or matrix product is a box in the row of
    the first output that needs it, to the right of all layers that it reads. The height of a box
    shows its channels. Lines show which results a layer reads; colored lines cross rows, where a
    later output reuses results of an earlier one. Lines that follow from others are left out. In a
    nested net no line leads down.

    Args:
      net: an `nnx.Module` with `num_outputs`, `start(x)` and `advance(k, carry)`.
      input_shape: of one example, without the batch axis.
      axes: where to draw.

    Returns:
      The axes.

    Raises:
      ImportError: without matplotlib.
      ValueError: the net does not take this shape.

    Example:
      >>> from flax import nnx
      >>> from matplotlib.figure import Figure
      >>> from osgd_jax import nets, plots
      >>> net = nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> axes = plots.nesting(net, (8, 8, 1), axes=Figure().subplots())
      >>> len(axes.patches) > 0
      True
    """
    axes = _axes(axes)
    drawn = diagram(net, input_shape)
    places, rows = drawn.places, drawn.rows
    for source, target in drawn.lines:
        crosses = rows[source] != rows[target]
        axes.plot(
            *zip(places[source], places[target], strict=True),
            color=f"C{rows[source]}" if crosses else "0.6",
            linewidth=1.2 if crosses else 1,
            zorder=1,
        )
    for (x, y), row, channels in zip(places, rows, drawn.channels, strict=True):
        height = 0.06 + 0.32 * channels / max(drawn.channels)
        axes.bar(x, height, 0.5, y - height / 2, color=f"C{row}", zorder=2)
    for row, head in enumerate(drawn.heads):
        x, y = places[head]
        axes.annotate(f"output {row}", (x + 0.4, y), va="center")
    axes.set_xlim(-0.7, 1.15 * max(x for x, _ in places) + 0.6)
    axes.set_ylim(-0.5, len(drawn.heads) - 0.5)
    axes.set_yticks(range(len(drawn.heads)), [f"stage {row}" for row in range(len(drawn.heads))])
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("layers in sequence, from the input on the left")
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _axes(axes: "Axes | None") -> "Axes":
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ImportError("osgd_jax.plots needs matplotlib: pip install matplotlib") from None
    if axes is None:
        return pyplot.subplots(layout="constrained")[1]
    if not hasattr(axes, "errorbar"):
        raise ValueError(f"axes={axes!r} must be axes of matplotlib, or None for new ones.")
    return axes


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        raise ValueError(f"{name}={values!r} must be numbers.") from None
