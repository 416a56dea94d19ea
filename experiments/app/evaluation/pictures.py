"""Pictures of an evaluation: the anytime curve, confusion matrices, a sheet of wrong images."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.app.evaluation.mistakes import Mistakes
from osgd_jax.plots import anytime_curve

# Classes up to which axes have names, and cells numbers.
_NAMED, _NUMBERED = 30, 12

# Most images of a contact sheet, and in a row of pictures.
_IMAGES, _ROW = 24, 6

# Characters of a name.
_LONGEST = 18


def draw_curve(found: dict[str, Any], path: Path) -> None:
    """Draw the anytime curve, and budgeted classification or deadlines, and save the picture."""
    from matplotlib.figure import Figure

    if "deadlines" in found:
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        curve, timed = figure.subplots(1, 2, sharey=True)
        bits = [output["bits_per_token"] for output in found["outputs"]]
        anytime_curve([each["multiply_adds"] for each in found["outputs"]], bits, axes=curve)
        curve.set_xlabel("multiply-adds per token, up to each output")
        curve.set_ylabel("test bits per token")
        rows = found["deadlines"]
        deadlines = [1e3 * row["deadline"] for row in rows]
        timed.plot(deadlines, [row["bits_per_token"] for row in rows], "o-")
        timed.set_xlabel("deadline for each token, ms")
        timed.grid(alpha=0.3)
        figure.savefig(path, dpi=150)
        return
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    costs = [output["multiply_adds"] for output in found["outputs"]]
    accuracy = [100 * output["accuracy"] for output in found["outputs"]]
    label = "anytime: last output in budget"
    anytime_curve(costs, accuracy, label=label, axes=axes, drawstyle="steps-post")
    if "budgeted" in found:
        budgets = found["budgeted"]
        points = sorted((each["average_multiply_adds"], 100 * each["accuracy"]) for each in budgets)
        label = f"budgeted batch: exits by {found['rule']}"
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=150)


def draw_confusion(mistakes: Mistakes, path: Path) -> None:
    """Draw the confusion matrix of each output, each row in shares of its class."""
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    outputs, classes = len(mistakes.confusion), mistakes.classes
    columns = min(outputs, 3)
    rows = math.ceil(outputs / columns)
    side = min(9.0, max(4.0, 0.45 * len(classes)))
    figure = Figure(figsize=(side * columns, side * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for k, axes in enumerate(panels[:outputs]):
        confusion = mistakes.confusion[k]
        shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
        ConfusionMatrixDisplay(shares, display_labels=[*map(_plain, classes)]).plot(
            include_values=len(classes) <= _NUMBERED,
            xticks_rotation="vertical",
            values_format=".2f",
            ax=axes,
            colorbar=False,
            im_kw={"vmin": 0, "vmax": 1, "cmap": "Blues"},
        )
        if len(classes) > _NAMED:
            axes.set(xticks=[], yticks=[])
        axes.set(title=f"output {k + 1}", xlabel="predicted class", ylabel="true class")
    for axes in panels[outputs:]:
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def draw_wrong(mistakes: Mistakes, read: Callable[[int], np.ndarray], path: Path) -> None:
    """Draw the wrong examples of the last output whose class was the most probable.

    Args:
      mistakes: of all outputs.
      read: from the index of an example to its input, `[*spatial, channels]`.
      path: of the picture.
    """
    from matplotlib.figure import Figure

    wrong = mistakes.wrong(-1).tolist()
    shown = wrong[:_IMAGES]
    rows = max(1, math.ceil(len(shown) / _ROW))
    figure = Figure(figsize=(1.9 * _ROW, 2.3 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{len(shown)} of {len(wrong):,} wrong examples: true → predicted class")
    panels = figure.subplots(rows, _ROW, squeeze=False).ravel()
    for axes, index in zip(panels, shown, strict=False):
        _draw_input(axes, read(index))
        true = _plain(mistakes.classes[mistakes.labels[index]])
        predicted = _plain(mistakes.classes[mistakes.predicted[-1, index]])
        share = f"{100 * mistakes.probability[-1, index]:.0f} %"
        axes.set_title(f"{true} →\n{predicted} {share}", fontsize=8)
        axes.set(xticks=[], yticks=[])
    for axes in panels[len(shown) :]:
        axes.set_axis_off()
    figure.savefig(path, dpi=120)


def _draw_input(axes: Any, values: np.ndarray) -> None:
    """Draw an image, its numbers stretched from black to white, or the curves of a sequence."""
    if values.ndim == 2:
        axes.plot(values)
        return
    low, high = (0, 255) if values.dtype == np.uint8 else (values.min(), values.max())
    pixels = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    axes.imshow(pixels if pixels.shape[-1] == 3 else pixels[..., 0], cmap="gray", vmin=0, vmax=1)


def _plain(name: str) -> str:
    """Keep matplotlib from reading a name as mathematics, and cut a long one."""
    name = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return name.replace("$", r"\$")
