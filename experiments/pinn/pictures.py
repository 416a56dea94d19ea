"""Draw the solution of a net, the true one, the error, and the conflict over time."""

from pathlib import Path
from typing import Any

import numpy as np

import osgd_jax
from experiments.pinn.problems import Problem
from osgd_jax import plots


def draw(problem: Problem, values: np.ndarray, records: list[dict[str, Any]], path: Path) -> None:
    """Draw solution, exact solution, error, and the cosines between the losses' gradients.

    Args:
      problem: that is solved.
      values: of the net on the problem's grid.
      records: of metrics.jsonl.
      path: file of the picture.
    """
    from matplotlib.figure import Figure

    solution = problem.solution()
    wrong = values - solution
    figure = Figure(figsize=(15, 3.4), layout="constrained")
    *fields, conflict = figure.subplots(1, 4)
    shown = {"net": values, "solution": solution, "error": wrong}
    for axes, (title, field) in zip(fields, shown.items(), strict=True):
        limit = np.abs(wrong if title == "error" else solution).max()
        image = axes.imshow(
            field.T,
            extent=(problem.low[0], problem.high[0], problem.low[1], problem.high[1]),
            origin="lower",
            aspect="auto",
            cmap="RdBu_r",
            vmin=-limit,
            vmax=limit,
        )
        figure.colorbar(image, ax=axes)
        axes.set_title(title)
        axes.set_xlabel(problem.coordinates[0])
        axes.set_ylabel(problem.coordinates[1])
    steps = [record["step"] for record in records]
    gramians = np.array([record["gramian"] for record in records])
    cosines = [np.asarray(osgd_jax.task_cosines(each)) for each in gramians]
    plots.cosines(steps, cosines, names=tuple(sorted(problem.terms)), axes=conflict)
    figure.savefig(path, dpi=110)
