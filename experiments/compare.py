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

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import osgd_jax
from experiments.app import command_line, data, methods
from experiments.app.files import open_folder, write_json
from experiments.app.machine import machine
from experiments.app.nets import ResNetFamily, Sizes, make_net
from experiments.app.settings import flat, require
from experiments.lab import deadlines
from experiments.lab.report import Table
from experiments.lab.statistics import paired, standard_error
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Sweep
from experiments.lab.vectorized import Trained, Trainer, Training, accuracy_of

# As in the study, where clipping at this norm is the baseline to beat.
METHODS = {"sgd": {}, "sgd clipped": {"clip_norm": 1.0}, "osgd": {"optimizer": "osgd"}}


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

    @property
    def question(self) -> Question:
        """The comparison as a question of the laboratory."""
        tuned = range(self.tuning_seeds)
        seeds = range(self.tuning_seeds, self.tuning_seeds + self.seeds)
        return Question("Which method is the best?", (self.data,), tuple(METHODS), tuned, seeds)


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
    tasks, states = {}, {}

    def make_trainer(_: str, name: str) -> Trainer:
        length = {"epochs": config.epochs, "batch_size": config.batch_size}
        method = dataclasses.replace(methods.method(_settings(config, name)), name=name)
        trainer = Trainer(make, dataset, method, **length, group=config.tuning_seeds)
        tuned = config.tuning_seeds * len(config.learning_rates)
        calls = math.ceil(tuned / trainer.group) + math.ceil(config.seeds / trainer.group)
        tasks[name] = progress.add_task(name, total=calls * config.epochs)
        return trainer

    def measure(trainer: Trainer, trained: Trained, stage: str) -> list[Row]:
        if stage == "test":
            first = jax.device_get(trainer.alone(trained.state))
            states.setdefault(trainer.method.name, first)
        losses = [{"losses": each} for each in np.array(trained.losses)]
        return list(map(dict.__or__, accuracy_of(trainer, trained, stage), losses))

    runs, question = Sweep(Store(None), lambda method: config.learning_rates), config.question
    training = Training(make_trainer, measure, lambda name: progress.advance(tasks[name]))
    each_alone = [question._replace(methods=(name,)) for name in METHODS]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        # Small nets leave most of the cores to others.
        list(pool.map(lambda asked: runs.answer(asked, training), each_alone))
    scores = {name: runs.mean_scores(config.data, name, question.tuned) for name in METHODS}
    best = states[max(scores, key=lambda name: max(scores[name].values()))]
    net = nnx.merge(nnx.split(make(nnx.Rngs(0)))[0], best.params, best.rest)
    results = {
        "config": flat(config) | {"output": config.output.name},
        "seeds": {"tuning": list(question.tuned), "test": list(question.seeds)},
        "machine": machine(),
        "seconds": round(time.time() - started, 1),
        "outputs": [cost._asdict() for cost in costs],
        "methods": [_row(runs, question, name) for name in METHODS],
        "deadlines": [answers._asdict() for answers in deadlines.answer(net, dataset.test)],
    }
    return results, net


def _settings(config: Config, name: str) -> methods.Settings:
    changes = {"optimizer": "sgd", "momentum": config.momentum} | METHODS[name]
    if name == "osgd":
        changes["scope"] = config.scope
    return methods.Settings(**changes)


def _row(runs: Sweep, question: Question, name: str) -> dict[str, Any]:
    """Return results of a method as written to results.json."""
    (problem,) = question.problems
    result = runs.result(problem, name, question.tuned, question.seeds)
    assert result is not None
    rows = runs.answers(question, problem, name)
    tuned = [row for row in rows if row["stage"] == "tune"]
    by_rate = {
        rate: [row["accuracy"] for row in tuned if row["learning_rate"] == rate]
        for rate in runs.rates(name)
    }
    return {
        "method": name,
        "learning_rate": result.rate,
        "validation_accuracy_by_rate": [
            {"learning_rate": rate, "seeds": _rounded(seeds, 4)} for rate, seeds in by_rate.items()
        ],
        "test_accuracy": _rounded([row["accuracy"] for row in result.rows], 4),
        "final_losses": _rounded([row["losses"] for row in result.rows], 6),
    }


def _rounded(values: Any, digits: int) -> Any:
    return np.array(values, np.float32).round(digits).tolist()


def series(results: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean and standard error of the test accuracy in percent, `[K]` each, by method."""
    runs = {each["method"]: 100 * np.array(each["test_accuracy"]) for each in results["methods"]}
    return {name: (each.mean(axis=0), standard_error(each)) for name, each in runs.items()}


def table(results: dict[str, Any]) -> Table:
    """Return one row per method, one column per output; the cost of each output below."""
    config = results["config"]
    title = (
        f"Test accuracy, % (mean ± standard error of {config['seeds']} seeds): "
        f"{config['net']} net, {config['data']}"
    )
    outputs = [f"output {k}" for k in range(config["outputs"])]
    shown = Table(title, ["method", "rate", *outputs, "mean"])
    for method, (means, errors) in zip(results["methods"], series(results).values(), strict=True):
        cells = [f"{mean:.1f} ± {error:.1f}" for mean, error in zip(means, errors, strict=True)]
        shown.add(method["method"], f"{method['learning_rate']:g}", *cells, f"{means.mean():.1f}")
    for label, field in (("parameters", "parameters"), ("multiply-adds", "multiply_adds")):
        shown.add(label, "", *[f"{output[field]:,}" for output in results["outputs"]], "")
    return shown


def deadline_table(results: dict[str, Any]) -> Table:
    """Return one row per deadline of the net that answered the test examples."""
    title = f"One trained net under deadlines, {deadlines.BATCH} examples at a time"
    header = ["deadline, ms", "answer after, ms", "in time, %", "accuracy, %", "by output, %"]
    shown = Table(title, header, words=0)
    for answers in results["deadlines"]:
        shown.add(
            f"{1e3 * answers['deadline']:.2f}",
            f"{1e3 * answers['seconds']:.2f}",
            f"{100 * answers['in_time']:.1f}",
            f"{100 * answers['accuracy']:.1f}",
            " / ".join(f"{100 * share:.0f}" for share in answers["outputs"]),
        )
    return shown


def sentences(results: dict[str, Any]) -> list[str]:
    """Return paired differences between the methods, and rates at an edge of the grid."""
    config = results["config"]
    runs = {
        method["method"]: 100 * np.array(method["test_accuracy"]).mean(axis=1)
        for method in results["methods"]
    }
    verdicts, lines = {-1: "below", 0: "level with", 1: "above"}, []
    for name, base in (("sgd clipped", "sgd"), ("osgd", "sgd"), ("osgd", "sgd clipped")):
        difference = paired(runs[name], runs[base])
        lines.append(f"{name} is {verdicts[difference.sign]} {base}: {difference} points")
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
