"""The table and the plot of a comparison, made from its results.json alone."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

_ALONE = "each alone"


def series(results: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard error of the test accuracy in percent, `[K]` each, by method.

    The runs of single outputs are gathered into one series.
    """
    gathered: dict[str, list[np.ndarray]] = {}
    for method in results["methods"]:
        name = method["method"] if method["output"] is None else _ALONE
        gathered.setdefault(name, []).append(100 * np.array(method["test_accuracy"]))
    runs = {name: np.concatenate(parts, axis=1) for name, parts in gathered.items()}
    return {name: (each.mean(axis=0), standard_error(each)) for name, each in runs.items()}


def standard_error(runs: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis; not a number for a single run."""
    if len(runs) < 2:
        return np.full(runs.shape[1:], np.nan)
    return runs.std(axis=0, ddof=1) / np.sqrt(len(runs))


def table(results: dict[str, Any]) -> Table:
    """One row a method, one column an output; below, what each output costs."""
    config = results["config"]
    shown = Table(
        title=f"Test accuracy, % (mean ± standard error of {config['seeds']} seeds): "
        f"{config['net']} net, {config['data']}"
    )
    shown.add_column("method")
    shown.add_column("rate", justify="right")
    for k in range(config["outputs"]):
        shown.add_column(f"output {k + 1}", justify="right")
    shown.add_column("mean", justify="right")
    for name, (means, errors) in series(results).items():
        rates = [
            f"{method['learning_rate']:g}"
            for method in results["methods"]
            if (_ALONE if method["output"] is not None else method["method"]) == name
        ]
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, errors, strict=True)]
        shown.add_row(name, "/".join(rates), *cells, f"{means.mean():.1f}")
    shown.add_section()
    for label, field in (("parameters", "parameters"), ("multiply-adds", "multiply_adds")):
        shown.add_row(label, "", *[f"{output[field]:,}" for output in results["outputs"]], "")
    return shown


def notes(results: dict[str, Any]) -> list[str]:
    """What a reader must know beside the table: paired differences, rates at the grid's edge."""
    runs = {
        method["method"]: 100 * np.array(method["test_accuracy"]) for method in results["methods"]
    }
    lines = []
    for name, base in (("osgd", "sgd"), ("sgd clipped", "sgd"), ("osgd", "sgd clipped")):
        difference = (runs[name] - runs[base]).mean(axis=1)
        lines.append(
            f"{name} − {base}, mean over outputs, paired by seed: {difference.mean():+.2f} ±"
            f" {standard_error(difference):.2f} points."
        )
    grid = results["config"]["learning_rates"]
    for method in results["methods"]:
        if len(grid) > 1 and method["learning_rate"] in (min(grid), max(grid)):
            lines.append(
                f"The rate {method['learning_rate']:g} of {method['method']} is at the edge of the"
                " grid; a wider grid might find a better one."
            )
    return lines


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw accuracy against multiply-adds, one line a method, and save it as a picture."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    config = results["config"]
    costs = [output["multiply_adds"] for output in results["outputs"]]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {_ALONE: {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}}
    for name, (means, errors) in series(results).items():
        style = {"marker": "o", "capsize": 3} | styles.get(name, {})
        axes.errorbar(costs, means, np.nan_to_num(errors), label=name, **style)
    axes.set_xscale("log")
    axes.set_xticks(costs)
    axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=" "))
    axes.minorticks_off()
    axes.set_xlabel("multiply-adds per example, up to each output")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(
        f"{config['net']} net on {config['data']}: mean ± standard error, {config['seeds']} seeds"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
