"""Draw goodput against load."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.lab.statistics import interval

# Of Okabe and Ito, which color-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#888888", "#CC79A7", "#E69F00")


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw the share of requests with a right answer in time against the load."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    loads = results["config"]["loads"]
    for way, color in zip(dict.fromkeys(r["way"] for r in results["runs"]), _COLORS, strict=False):
        shares = [
            100
            * np.array(
                [r["goodput"] for r in results["runs"] if (r["way"], r["load"]) == (way, load)]
            )
            for load in loads
        ]
        means, widths = zip(*(interval(share) for share in shares), strict=True)
        axes.errorbar(
            loads,
            means,
            np.nan_to_num(widths, posinf=0),
            marker="o",
            capsize=3,
            color=color,
            label=way,
        )
    axes.set_xlabel("arrivals over the capacity of the last output")
    axes.set_ylabel("right answers in time, % of requests")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
    plt.close(figure)
