"""The figures of the study's page."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.sweep import Sweep
from experiments.studies.anytime.problems import FAMILIES, IMAGES, NetProblem
from experiments.studies.anytime.results import best_tuned, ceilings, series
from osgd_jax import plots

_STYLES = {
    "sgd": {"color": "tab:blue"},
    "sgd-clipped": {"color": "tab:green"},
    "osgd-shared": {"color": "tab:orange"},
    "osgd-all": {"color": "tab:red"},
}
_ALONE = {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}


def figure(runs: Sweep, name: str, folder: Path) -> str:
    """Draw `"families"`, `"images"` or `"conflict"` into a folder; return the file's name."""
    from matplotlib.figure import Figure

    among, draw = {
        "families": (FAMILIES, _accuracies),
        "images": (IMAGES, _accuracies),
        "conflict": (FAMILIES, _conflict),
    }[name]
    drawn = Figure(figsize=(14, 7.2), layout="constrained")
    panels = drawn.subplots(2, len(among) // 2).ravel()
    for axes, problem in zip(panels, among, strict=True):
        axes.set_title(problem.name)
        draw(runs, problem, axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            axes.remove()
    drawn.savefig(folder / f"{name}.png", dpi=110)
    return f"{name}.png"


def _accuracies(runs: Sweep, problem: NetProblem, axes: Any) -> None:
    """Test accuracy against multiply-adds."""
    costs = [output.multiply_adds for output in problem.costs()]
    for method, style in _STYLES.items():
        for found in best_tuned(runs, problem, method):
            tests = np.array(list(found.tests.values()))
            error = tests.std(axis=0, ddof=1) / np.sqrt(len(tests))
            plots.anytime_curve(costs, found.means, error=error, label=method, axes=axes, **style)
    if (ceiling := ceilings(runs, problem)) is not None:
        plots.anytime_curve(costs, ceiling, label="each alone", axes=axes, **_ALONE)
    axes.set_ylabel("test accuracy, %")


def _conflict(runs: Sweep, problem: NetProblem, axes: Any) -> None:
    """Cosines between neighbouring outputs' gradients in training."""
    for name, style in _STYLES.items():
        for found in best_tuned(runs, problem, name):
            epochs: Sequence[int] = found.rows[0]["looks"]["epoch"]
            cosines = series(found, "task_cosines")
            for k, line in zip(range(problem.outputs - 1), ("-", "--", ":", "-."), strict=False):
                label = f"{name}: outputs {k + 1} and {k + 2}"
                axes.plot(epochs, cosines[:, k, k + 1], line, label=label, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cosine between gradients")
    axes.grid(alpha=0.3)
