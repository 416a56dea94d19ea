"""The figures of STUDY.md."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.study.problems import Problem
from experiments.study.statistics import best_tuned, ceilings
from experiments.study.store import Store
from osgd_jax import plots

_STYLES = {
    "sgd": {"color": "tab:blue"},
    "sgd-clipped": {"color": "tab:green"},
    "osgd-shared": {"color": "tab:orange"},
    "osgd-all": {"color": "tab:red"},
}
_ALONE = {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}


def accuracies(store: Store, among: Sequence[Problem], name: str) -> Path | None:
    """Test accuracy against multiply-adds on some problems; None where nothing is tested yet."""
    figure, panels = _panels(len(among))
    drawn = False
    for axes, problem in zip(panels, among, strict=True):
        costs = [output.multiply_adds for output in problem.costs()]
        for method, style in _STYLES.items():
            for found in best_tuned(store, problem, method):
                tests = np.array(list(found.tests.values()))
                error = tests.std(axis=0, ddof=1) / np.sqrt(len(tests))
                plots.anytime_curve(
                    costs, found.means, error=error, label=method, axes=axes, **style
                )
                drawn = True
        if (ceiling := ceilings(store, problem)) is not None:
            plots.anytime_curve(costs, ceiling, label="each alone", axes=axes, **_ALONE)
        axes.set_title(problem.name)
        axes.set_ylabel("test accuracy, %")
    return _save(figure, panels, store.path.parent / name, drawn)


def conflict(store: Store, among: Sequence[Problem]) -> Path | None:
    """Cosines between neighbouring outputs' gradients in training; None if nothing is there."""
    figure, panels = _panels(len(among))
    drawn = False
    for axes, problem in zip(panels, among, strict=True):
        for name, style in _STYLES.items():
            for found in best_tuned(store, problem, name):
                epochs = found.runs[0]["looks"]["epoch"]
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
    return _save(figure, panels, store.path.parent / "conflict.png", drawn)


def _panels(count: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 7.2), layout="constrained")
    return figure, figure.subplots(2, count // 2).ravel()


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
