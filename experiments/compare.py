"""Train an anytime net with SGD, clipped SGD and OSGD; compare them and answer under deadlines.

Each method's learning rate is chosen from the same grid on validation data with one set of seeds,
and tested once with other seeds. Then one of the trained nets answers batches of test
examples under three deadlines.
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
from experiments import command_line, data, deadlines, methods
from experiments.files import open_folder, write_json
from experiments.nets import ResNetFamily, Sizes, make_net
from experiments.settings import flat, require
from experiments.tables import interval, machine
from experiments.trainer import MakeNet, Trainer, Tuned, tune_and_test

# As in the study, where clipping at this norm is the baseline to beat.
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """The comparison.

    The defaults are the smallest net of the study with a coarser grid of learning rates.

    Attributes:
      data: built-in data set.
      net: family of anytime nets.
      outputs: number of outputs, K.
      widths: channels of each level of resolution, at the last output for a width-nested net.
      blocks: residual blocks of each level; one if not given.
      train_size: training examples to use; all if not given.
      epochs: passes over them.
      batch_size: examples in a step.
      learning_rates: the grid from which each method's rate is chosen.
      momentum: decay rate of Nesterov momentum.
      scope: which parameters OSGD orthogonalizes together; the library's default if not given.
      tuning_seeds: seeds that choose each rate.
      seeds: other seeds, trained and tested at the rate.
      output: folder for results.json, comparison.png and anytime.png.
    """

    data: Literal["mnist1d", "digits"] = "mnist1d"
    net: ResNetFamily = "branched"
    outputs: int = 3
    widths: tuple[int, ...] = (8, 8)
    blocks: tuple[int, ...] | None = (2, 2)
    train_size: int | None = 1000
    epochs: int = 40
    batch_size: int = 100
    learning_rates: tuple[float, ...] = (0.1, 0.25, 0.6, 1.5)
    momentum: float = 0.9
    scope: methods.Scope | None = None
    tuning_seeds: int = 5
    seeds: int = 20
    output: Path = Path("runs/compare")

    def __post_init__(self):
        require(self, fields=("outputs", "widths", "blocks", "train_size", "epochs"), at_least=1)
        require(self, fields=("batch_size", "tuning_seeds", "seeds"), at_least=1)
        require(self, fields=("learning_rates",), above=0)
        require(self, fields=("momentum",), at_least=0, below=1)


def compare(config: Config, progress: Progress) -> tuple[dict[str, Any], Any]:
    """Train all methods; return the results as written to results.json, and one trained net.

    The net is the first test net of the method with the best validation accuracy.

    Raises:
      ValueError: sizes that do not fit each other or the data.
    """
    started = time.time()
    dataset = data.load(data.Source(config.data, config.train_size))
    sizes = Sizes(config.net, config.outputs, config.widths, config.blocks)
    make = functools.partial(make_net, sizes, dataset)
    costs = osgd_jax.cost(make(nnx.Rngs(0)), dataset.input_shape)
    compared = _methods(config)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Small nets leave most of the cores to others.
        tested = list(
            pool.map(lambda method: _tested(config, make, dataset, method, progress), compared)
        )
    best = max(tested, key=lambda each: each.validation[each.learning_rate].mean())
    graphdef = nnx.split(make(nnx.Rngs(0)))[0]
    net = nnx.merge(graphdef, best.state.params, best.state.rest)
    results = {
        "config": flat(config) | {"output": config.output.name},
        "seeds": dict(zip(("tuning", "test"), map(list, _seeds(config)), strict=True)),
        "machine": machine(),
        "seconds": round(time.time() - started, 1),
        "outputs": [cost._asdict() for cost in costs],
        "methods": [_row(*each) for each in zip(compared, tested, strict=True)],
        "deadlines": [answers._asdict() for answers in deadlines.answer(net, dataset.test)],
    }
    return results, net


def _seeds(config: Config) -> tuple[range, range]:
    """Seeds that choose a rate, and seeds that are tested."""
    return range(config.tuning_seeds), range(
        config.tuning_seeds, config.tuning_seeds + config.seeds
    )


def _tested(
    config: Config, make: MakeNet, dataset: data.Dataset, method: methods.Method, progress: Progress
) -> Tuned:
    """Tune and test one method."""
    length = {"epochs": config.epochs, "batch_size": config.batch_size}
    trainer = Trainer(make, dataset, method, **length, group=config.tuning_seeds)
    tuned = config.tuning_seeds * len(config.learning_rates)
    calls = math.ceil(tuned / trainer.group) + math.ceil(config.seeds / trainer.group)
    task = progress.add_task(method.name, total=calls * config.epochs)
    return tune_and_test(
        trainer, config.learning_rates, *_seeds(config), lambda: progress.advance(task)
    )


def _row(method: methods.Method, tuned: Tuned) -> dict[str, Any]:
    """Results of a method as written to results.json."""
    return {
        "method": method.name,
        "learning_rate": tuned.learning_rate,
        "validation_accuracy_by_rate": [
            {"learning_rate": rate, "seeds": seeds.round(4).tolist()}
            for rate, seeds in tuned.validation.items()
        ],
        "test_accuracy": tuned.tests.round(4).tolist(),
        "final_losses": tuned.losses.round(6).tolist(),
    }


def _methods(config: Config) -> list[methods.Method]:
    settings = functools.partial(methods.Settings, momentum=config.momentum)
    clipped = methods.method(settings("sgd", clip_norm=_CLIP_NORM))
    return [
        methods.method(settings("sgd")),
        dataclasses.replace(clipped, name="sgd clipped"),
        methods.method(settings("osgd", config.scope)),
    ]


def series(results: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard error of the test accuracy in percent, `[K]` each, by method."""
    runs = {each["method"]: 100 * np.array(each["test_accuracy"]) for each in results["methods"]}
    return {name: (each.mean(axis=0), _error(each)) for name, each in runs.items()}


def _error(runs: np.ndarray) -> np.ndarray:
    """Standard error of the mean over the first axis; not a number for a single run."""
    return stats.sem(runs) if len(runs) > 1 else np.full(runs.shape[1:], np.nan)


def table(results: dict[str, Any]) -> Table:
    """One row per method, one column per output; the cost of each output below."""
    config = results["config"]
    shown = Table(
        title=f"Test accuracy, % (mean ± standard error of {config['seeds']} seeds): "
        f"{config['net']} net, {config['data']}"
    )
    shown.add_column("method")
    shown.add_column("rate", justify="right")
    for k in range(config["outputs"]):
        shown.add_column(f"output {k}", justify="right")
    shown.add_column("mean", justify="right")
    for method, (means, errors) in zip(results["methods"], series(results).values(), strict=True):
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, errors, strict=True)]
        rate = f"{method['learning_rate']:g}"
        shown.add_row(method["method"], rate, *cells, f"{means.mean():.1f}")
    shown.add_section()
    for label, field in (("parameters", "parameters"), ("multiply-adds", "multiply_adds")):
        shown.add_row(label, "", *[f"{output[field]:,}" for output in results["outputs"]], "")
    return shown


def deadline_table(results: dict[str, Any]) -> Table:
    """One row per deadline of the net that answered the test examples."""
    shown = Table(title=f"One trained net under deadlines, {deadlines.BATCH} examples at a time")
    for name in ("deadline, ms", "answer after, ms", "in time, %", "accuracy, %", "by output, %"):
        shown.add_column(name, justify="right")
    for answers in results["deadlines"]:
        shown.add_row(
            f"{1e3 * answers['deadline']:.2f}",
            f"{1e3 * answers['seconds']:.2f}",
            f"{100 * answers['in_time']:.1f}",
            f"{100 * answers['accuracy']:.1f}",
            " / ".join(f"{100 * share:.0f}" for share in answers["outputs"]),
        )
    return shown


def sentences(results: dict[str, Any]) -> list[str]:
    """Paired differences between the methods with their intervals; rates at an edge of the grid."""
    config = results["config"]
    runs = {
        method["method"]: 100 * np.array(method["test_accuracy"]).mean(axis=1)
        for method in results["methods"]
    }
    lines = []
    for name, base in (("sgd clipped", "sgd"), ("osgd", "sgd"), ("osgd", "sgd clipped")):
        difference = interval(runs[name] - runs[base])
        if abs(difference.mean) <= difference.half_width:
            verdict = f"is level with {base}"
        else:
            verdict = f"is {'above' if difference.mean > 0 else 'below'} {base}"
        lines.append(f"{name} {verdict}: {difference} points")
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
    """Draw accuracy against multiply-adds, one line per method, and save it as a picture."""
    from matplotlib.figure import Figure

    from osgd_jax import plots

    config = results["config"]
    costs = [output["multiply_adds"] for output in results["outputs"]]
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, (means, errors) in series(results).items():
        plots.anytime_curve(costs, means, error=errors, label=name, axes=axes)
    axes.set_ylabel("test accuracy, %")
    axes.set_title(
        f"{config['net']} net on {config['data']}: mean ± standard error, {config['seeds']} seeds"
    )
    axes.legend()
    figure.savefig(path, dpi=150)


def plot_anytime(results: dict[str, Any], net: Any, path: Path) -> None:
    """Draw the stages of the net beside its accuracy at three deadlines; save it as a picture."""
    from matplotlib.figure import Figure

    from osgd_jax import plots

    input_shape = data.load(data.Source(results["config"]["data"])).input_shape
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    plots.nesting(net, input_shape, axes=left)
    left.set_title("Each stage reuses the results of the earlier ones")
    times = [1e3 * answers["seconds"] for answers in results["deadlines"]]
    accuracy = [100 * answers["accuracy"] for answers in results["deadlines"]]
    right.plot(times, accuracy, color="0.6", zorder=1)
    for k, answers in enumerate(results["deadlines"]):
        right.scatter(times[k], accuracy[k], color=f"C{k}", zorder=3)
        right.axvline(1e3 * answers["deadline"], color=f"C{k}", linestyle=":", linewidth=1)
        right.annotate(
            f"{accuracy[k]:.1f} %",
            (times[k], accuracy[k]),
            (0, 8),
            textcoords="offset points",
            ha="right",
        )
    right.margins(y=0.2)
    right.set_xlim(left=0)
    right.set_xlabel("milliseconds per batch (dotted: deadline)")
    right.set_ylabel("test accuracy, %")
    right.set_title("The same net answers by any deadline")
    right.grid(alpha=0.3)
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
            results, net = compare(config, progress)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(table(results))
    for line in sentences(results):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(deadline_table(results))
    results_file = config.output / "results.json"
    write_json(results_file, results)
    plot(results, config.output / "comparison.png")
    plot_anytime(results, net, config.output / "anytime.png")
    console.print(
        f"Wrote {results_file}, comparison.png and anytime.png.", highlight=False, soft_wrap=True
    )


if __name__ == "__main__":
    main()
