"""Draw goodput against load."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab.statistics import interval

# Of Okabe and Ito, which color-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#888888", "#CC79A7", "#E69F00")


def draw(runs: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the share of requests with a right answer in time against the load."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    loads = list(dict.fromkeys(run["load"] for run in runs))
    for way, color in zip(dict.fromkeys(run["way"] for run in runs), _COLORS, strict=False):
        shares = [
            [100 * run["goodput"] for run in runs if (run["way"], run["load"]) == (way, load)]
            for load in loads
        ]
        means, widths = zip(*map(interval, shares), strict=True)
        error = np.nan_to_num(widths, posinf=0)
        style = {"marker": "o", "capsize": 3, "color": color, "label": way}
        axes.errorbar(loads, means, error, **style)
    axes.set_xlabel("arrivals over the capacity of the last output")
    axes.set_ylabel("right answers in time, % of requests")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
    plt.close(figure)
