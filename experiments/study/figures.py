"""The figures of STUDY.md."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.study import problems
from experiments.study.statistics import best_tuned, ceilings
from osgd_jax import plots

_STYLES = {
    "sgd": {"color": "tab:blue"},
    "sgd-clipped": {"color": "tab:green"},
    "osgd-shared": {"color": "tab:orange"},
    "osgd-all": {"color": "tab:red"},
}
_ALONE = {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}


def families(folder: Path) -> Path | None:
    """Test accuracy against multiply-adds on every family; None where nothing is tested yet."""
    figure, panels = _panels()
    drawn = False
    for axes, problem in zip(panels, problems.FAMILIES, strict=False):
        costs = [output.multiply_adds for output in problem.costs()]
        for name, style in _STYLES.items():
            for found in best_tuned(folder, problem, name):
                tests = np.array(list(found.tests.values()))
                error = tests.std(axis=0, ddof=1) / np.sqrt(len(tests))
                plots.anytime_curve(costs, found.means, error=error, label=name, axes=axes, **style)
                drawn = True
        if (ceiling := ceilings(folder, problem)) is not None:
            plots.anytime_curve(costs, ceiling, label="each alone", axes=axes, **_ALONE)
        axes.set_title(problem.name)
        axes.set_ylabel("test accuracy, %")
    return _save(figure, panels, folder / "families.png", drawn)


def conflict(folder: Path) -> Path | None:
    """Cosines between neighbouring outputs' gradients in training; None if nothing is there."""
    figure, panels = _panels()
    drawn = False
    for axes, problem in zip(panels, problems.FAMILIES, strict=False):
        for name, style in _STYLES.items():
            for found in best_tuned(folder, problem, name):
                epochs = [look["epoch"] for look in found.runs[0]["looks"]]
                cosines = found.series("task_cosines")
                for k, line in zip(
                    range(problem.outputs - 1), ("-", "--", ":", "-."), strict=False
                ):
                    label = f"{name}: outputs {k + 1} and {k + 2}"
                    axes.plot(epochs, cosines[:, k, k + 1], line, label=label, **style)
                drawn = True
        axes.set_title(problem.name)
        axes.set_xlabel("epoch")
        axes.set_ylabel("cosine between gradients")
        axes.grid(alpha=0.3)
    return _save(figure, panels, folder / "conflict.png", drawn)


def _panels() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.2), layout="constrained")
    return figure, figure.subplots(2, 3).ravel()


def _save(figure: Any, panels: Any, path: Path, drawn: bool) -> Path | None:
    if not drawn:
        return None
    for axes in panels:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            axes.remove()
    figure.savefig(path, dpi=110)
    return path
