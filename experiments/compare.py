"""Train one anytime net by SGD, clipped SGD and OSGD, and say which does better at each output.

Each method's learning rate is chosen from the same grid on validation data, by seeds of its own;
the test data is looked at once, with the rate chosen and other seeds. Each output is also trained
alone, as a ceiling.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from scipy import stats

import osgd_jax
from experiments import command_line, data, methods
from experiments.files import open_folder, write_json
from experiments.nets import Sizes, make_net
from experiments.settings import flat, require
from experiments.tables import interval, machine
from experiments.trainer import MakeNet, Trainer, tune_and_test

# As in the study, where clipping at this norm is the baseline to beat.
_CLIP_NORM = 1.0

_ALONE = "each alone"


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

    The defaults are those of the study's first net, with a coarser grid; on two cores they
    take about four minutes.

    Attributes:
      data: built-in data set.
      net: family of anytime nets.
      outputs: number of outputs, K.
      widths: channels of each level of resolution, at the last output for a width-nested net.
      train_size: training examples to use; all if not given.
      epochs: passes over them.
      batch_size: examples in a step.
      learning_rates: the grid from which each method's rate is chosen.
      momentum: decay rate of Nesterov momentum.
      scope: which parameters OSGD orthogonalizes together; the library's default if not given.
      tuning_seeds: seeds that choose each rate.
      seeds: other seeds, trained and tested at the rate.
      output: folder for results.json and comparison.png.
    """

    data: Literal["mnist1d", "digits"] = "mnist1d"
    net: Literal["width-nested", "depth-nested"] = "width-nested"
    outputs: int = 3
    widths: tuple[int, ...] = (16, 16)
    train_size: int | None = 1000
    epochs: int = 40
    batch_size: int = 100
    learning_rates: tuple[float, ...] = (0.1, 0.25, 0.6, 1.5)
    momentum: float = 0.9
    scope: methods.Scope | None = None
    tuning_seeds: int = 5
    seeds: int = 15
    output: Path = Path("runs/compare")

    def __post_init__(self):
        require(self, fields=("outputs", "widths", "train_size", "epochs"), at_least=1)
        require(self, fields=("batch_size", "tuning_seeds", "seeds"), at_least=1)
        require(self, fields=("learning_rates",), above=0)
        require(self, fields=("momentum",), at_least=0, below=1)


def compare(config: Config, progress: Progress) -> dict[str, Any]:
    """Train all methods; return the results as written to results.json.

    Raises:
      ValueError: sizes that do not fit each other or the data.
    """
    started = time.time()
    dataset = data.load(data.Source(config.data, config.train_size))
    make = functools.partial(make_net, Sizes(config.net, config.outputs, config.widths), dataset)
    costs = osgd_jax.cost(make(nnx.Rngs(0)), dataset.input_shape)
    compared = _methods(config)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Small nets leave most of the cores to others.
        results = list(
            pool.map(lambda method: _tested(config, make, dataset, method, progress), compared)
        )
    return {
        "config": flat(config) | {"output": config.output.name},
        "seeds": dict(zip(("tuning", "test"), map(list, _seeds(config)), strict=True)),
        "machine": machine(),
        "seconds": round(time.time() - started, 1),
        "outputs": [cost._asdict() for cost in costs],
        "methods": results,
    }


def _seeds(config: Config) -> tuple[range, range]:
    """Those that choose a rate, and those that are tested."""
    return range(config.tuning_seeds), range(
        config.tuning_seeds, config.tuning_seeds + config.seeds
    )


def _tested(
    config: Config, make: MakeNet, dataset: data.Dataset, method: methods.Method, progress: Progress
) -> dict[str, Any]:
    """Tune and test one method."""
    length = {"epochs": config.epochs, "batch_size": config.batch_size}
    trainer = Trainer(make, dataset, method, **length, group=config.tuning_seeds)
    tuned = config.tuning_seeds * len(config.learning_rates)
    calls = math.ceil(tuned / trainer.group) + math.ceil(config.seeds / trainer.group)
    task = progress.add_task(method.name, total=calls * config.epochs)
    found = tune_and_test(
        trainer, config.learning_rates, *_seeds(config), lambda: progress.advance(task)
    )
    return {
        "method": method.name,
        "output": method.output,
        "learning_rate": found.learning_rate,
        "validation_accuracy_by_rate": [
            {"learning_rate": rate, "seeds": seeds.round(4).tolist()}
            for rate, seeds in found.validation.items()
        ],
        "test_accuracy": found.tests.round(4).tolist(),
        "final_losses": found.losses.round(6).tolist(),
    }


def _methods(config: Config) -> list[methods.Method]:
    settings = functools.partial(methods.Settings, momentum=config.momentum)
    clipped = methods.method(settings("sgd", clip_norm=_CLIP_NORM))
    return [
        methods.method(settings("sgd")),
        dataclasses.replace(clipped, name="sgd clipped"),
        methods.method(settings("osgd", config.scope)),
        *(methods.alone(k, momentum=config.momentum) for k in range(config.outputs)),
    ]


def series(results: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard error of the test accuracy in percent, `[K]` each, by method.

    The runs of single outputs are gathered into one series.
    """
    gathered: dict[str, list[np.ndarray]] = {}
    for method in results["methods"]:
        name = method["method"] if method["output"] is None else _ALONE
        gathered.setdefault(name, []).append(100 * np.array(method["test_accuracy"]))
    runs = {name: np.concatenate(parts, axis=1) for name, parts in gathered.items()}
    return {name: (each.mean(axis=0), _error(each)) for name, each in runs.items()}


def _error(runs: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis; not a number for a single run."""
    return stats.sem(runs) if len(runs) > 1 else np.full(runs.shape[1:], np.nan)


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


def sentences(results: dict[str, Any]) -> list[str]:
    """What was seen, in words: paired differences and their intervals; rates at an edge."""
    config = results["config"]
    runs = {
        method["method"]: 100 * np.array(method["test_accuracy"]).mean(axis=1)
        for method in results["methods"]
    }
    lines = []
    for name, base in (("sgd clipped", "sgd"), ("osgd", "sgd"), ("osgd", "sgd clipped")):
        found = interval(runs[name] - runs[base])
        if abs(found.mean) <= found.half_width:
            verdict = f"is level with {base}"
        else:
            verdict = f"is {'above' if found.mean > 0 else 'below'} {base}"
        lines.append(f"{name} {verdict}: {found} points")
    seen = [
        "; ".join(lines)
        + f" (mean over the outputs, 95 % interval over {config['seeds']} seeds, paired)."
    ]
    grid = config["learning_rates"]
    for method in results["methods"]:
        if len(grid) > 1 and method["learning_rate"] in (min(grid), max(grid)):
            seen.append(
                f"The rate {method['learning_rate']:g} of {method['method']} is at the edge of the"
                " grid; a wider grid might find a better one."
            )
    return seen


def plot(results: dict[str, Any], path: Path) -> None:
    """Draw accuracy against multiply-adds, one line a method, and save it as a picture."""
    from matplotlib.figure import Figure

    from osgd_jax import plots

    config = results["config"]
    costs = [output["multiply_adds"] for output in results["outputs"]]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    styles = {_ALONE: {"color": "0.5", "linestyle": "none", "marker": "_", "markersize": 16}}
    for name, (means, errors) in series(results).items():
        style = styles.get(name, {})
        plots.anytime_curve(costs, means, error=errors, label=name, axes=axes, **style)
    axes.set_ylabel("test accuracy, %")
    axes.set_title(
        f"{config['net']} net on {config['data']}: mean ± standard error, {config['seeds']} seeds"
    )
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = command_line.read(Config, "experiments.compare", __doc__)
        open_folder(config.output, "output")
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("epochs, remaining"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            results = compare(config, progress)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(table(results))
    for line in sentences(results):
        console.print(line, soft_wrap=True, highlight=False)
    results_file, plot_file = config.output / "results.json", config.output / "comparison.png"
    write_json(results_file, results)
    plot(results, plot_file)
    console.print(f"Wrote {results_file} and {plot_file}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
