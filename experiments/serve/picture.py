"""Draw goodput against load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab.statistics import interval

# Of Okabe and Ito, which color-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#888888", "#CC79A7", "#E69F00")


_LINE = 3.6  # points of goodput between labels


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the share of requests with a right answer in time against the load."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    loads = list(dict.fromkeys(run["load"] for run in runs))
    ends = {}
    names = list(dict.fromkeys(run["way"] for run in runs))
    for k, (way, color) in enumerate(zip(names, _COLORS, strict=False)):
        shares = [
            [100 * run["goodput"] for run in runs if (run["way"], run["load"]) == (way, load)]
            for load in loads
        ]
        means, widths = zip(*map(interval, shares), strict=True)
        beside = np.array(loads) + 0.006 * (k - len(names) / 2)  # so that bars do not overlap
        error = np.nan_to_num(widths, posinf=0)
        axes.errorbar(beside, means, error, marker="o", markersize=4, capsize=2, color=color)
        ends[way] = means[-1], color
    height = -np.inf
    for way, (mean, color) in sorted(ends.items(), key=lambda item: item[1]):
        height = max(mean, height + _LINE)
        axes.text(max(loads) + 0.03, height, way, color=color, va="center")
    axes.set_xlabel("arrivals over the capacity of the last output")
    axes.set_ylabel("right answers in time, % of requests")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
