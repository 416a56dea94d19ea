"""The figures of STUDY.md."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.study.problems import FAMILIES, IMAGES, Problem
from experiments.study.results import best_tuned, ceilings
from experiments.study.store import Store
from osgd_jax import plots

_STYLES = {
    "sgd": {"color": "tab:blue"},
    "sgd-clipped": {"color": "tab:green"},
    "osgd-shared": {"color": "tab:orange"},
    "osgd-all": {"color": "tab:red"},
}
_ALONE = {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}


def figure(store: Store, name: str) -> str:
    """Draw a figure beside the runs: `"families"`, `"images"` or `"conflict"`.

    Returns:
      Its path, seen from STUDY.md.
    """
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
        draw(store, problem, axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize="small")
        else:
            axes.remove()
    path = store.path.parent / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=110)
    return f"{path.parent.name}/{path.name}"


def _accuracies(store: Store, problem: Problem, axes: Any) -> None:
    """Test accuracy against multiply-adds."""
    costs = [output.multiply_adds for output in problem.costs()]
    for method, style in _STYLES.items():
        for found in best_tuned(store, problem, method):
            tests = np.array(list(found.tests.values()))
            error = tests.std(axis=0, ddof=1) / np.sqrt(len(tests))
            plots.anytime_curve(costs, found.means, error=error, label=method, axes=axes, **style)
    if (ceiling := ceilings(store, problem)) is not None:
        plots.anytime_curve(costs, ceiling, label="each alone", axes=axes, **_ALONE)
    axes.set_ylabel("test accuracy, %")


def _conflict(store: Store, problem: Problem, axes: Any) -> None:
    """Cosines between neighbouring outputs' gradients in training."""
    for name, style in _STYLES.items():
        for found in best_tuned(store, problem, name):
            epochs: Sequence[int] = found.runs[0]["looks"]["epoch"]
            cosines = found.series("task_cosines")
            for k, line in zip(range(problem.outputs - 1), ("-", "--", ":", "-."), strict=False):
                label = f"{name}: outputs {k + 1} and {k + 2}"
                axes.plot(epochs, cosines[:, k, k + 1], line, label=label, **style)
    axes.set_xlabel("epoch")
    axes.set_ylabel("cosine between gradients")
    axes.grid(alpha=0.3)
