"""Train one anytime net by SGD, clipped SGD and OSGD, and show which does better at each output.

Each method's learning rate is chosen from the same grid on validation data; the test data is looked
at once, with the rate chosen. Each output is also trained alone, as a ceiling.
"""

import dataclasses
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import osgd_jax
from experiments import comparison_report, data, methods
from experiments.nets import Sizes, make_net
from experiments.training import MakeNet, Method, Trained, compile_runs

# As in the study, where clipping at this norm is the baseline to beat.
_CLIP_NORM = 1.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

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
      scope: which parameters OSGD orthogonalizes together: shared, all, leaf or reach.
      seeds: runs of each method at its rate.
      tuning_seeds: how many of these seeds are also run at every rate of the grid.
      output: folder for results.json and comparison.png.
    """

    data: Literal["digits", "mnist1d"] = "digits"
    net: Literal["width-nested", "depth-nested"] = "width-nested"
    outputs: int = 3
    widths: tuple[int, ...] = (16, 32)
    train_size: int | None = None
    epochs: int = 25
    batch_size: int = 100
    learning_rates: tuple[float, ...] = (0.2, 0.4, 0.8, 1.6, 3.2)
    momentum: float = 0.9
    scope: Literal["shared", "all", "leaf", "reach"] = "shared"
    seeds: int = 5
    tuning_seeds: int = 2
    output: Path = Path("runs/compare")

    def __post_init__(self):
        for field in ("outputs", "epochs", "batch_size", "seeds", "tuning_seeds"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1.")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ValueError(f"learning_rates={self.learning_rates} must be one or more above 0.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum} must be at least 0 and below 1.")
        if self.tuning_seeds > self.seeds:
            raise ValueError(
                f"tuning_seeds={self.tuning_seeds} must not exceed seeds={self.seeds}."
            )


def compare(config: Config, progress: Progress) -> dict[str, Any]:
    """Train all methods; return the results as written to results.json.

    Raises:
      ValueError: sizes that do not fit each other or the data.
    """
    started = time.time()
    dataset = data.load(data.Source(config.data, config.train_size))
    if config.batch_size > len(dataset.train.labels):
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {len(dataset.train.labels)} training"
            " examples."
        )

    def make(rngs: nnx.Rngs):
        return make_net(Sizes(config.net, config.outputs, config.widths), dataset, rngs)

    costs = osgd_jax.cost(make(nnx.Rngs(0)), dataset.input_shape)
    sgd = methods.method(methods.Settings("sgd", momentum=config.momentum))
    clipped = methods.method(
        methods.Settings("sgd", momentum=config.momentum, clip_norm=_CLIP_NORM)
    )
    osgd = methods.method(methods.Settings("osgd", config.scope, momentum=config.momentum))
    compared = [sgd, dataclasses.replace(clipped, name="sgd clipped"), osgd]
    alone = [methods.alone(k, momentum=config.momentum) for k in range(config.outputs)]
    runs_each = config.tuning_seeds * len(config.learning_rates)
    runs_each += config.seeds - config.tuning_seeds
    task = progress.add_task("", total=runs_each * len(compared + alone))
    results = []
    for method in compared + alone:
        progress.update(task, description=method.name)
        results.append(
            _tune_and_test(config, make, dataset, method, lambda: progress.advance(task))
        )
    return {
        "config": dataclasses.asdict(config) | {"output": str(config.output)},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
        "seconds": round(time.time() - started, 1),
        "outputs": [cost._asdict() for cost in costs],
        "methods": results,
    }


def _tune_and_test(
    config: Config,
    make: MakeNet,
    dataset: data.Dataset,
    method: Method,
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Choose the rate by the tuning seeds' validation accuracy; test all seeds at that rate."""
    runs = compile_runs(make, dataset, method, epochs=config.epochs, batch_size=config.batch_size)

    def train(seed: int, learning_rate: float) -> Trained:
        trained = runs.train(seed, learning_rate)
        advance()
        return trained

    trained = {
        rate: [train(seed, rate) for seed in range(config.tuning_seeds)]
        for rate in config.learning_rates
    }
    validation = {
        rate: [runs.accuracy(each, dataset.validation) for each in trained[rate]]
        for rate in trained
    }
    best = max(validation, key=lambda rate: np.mean(validation[rate]))
    finalists = trained[best] + [
        train(seed, best) for seed in range(config.tuning_seeds, config.seeds)
    ]
    return {
        "method": method.name,
        "output": method.output,
        "learning_rate": best,
        "validation_accuracy_by_rate": [
            {"learning_rate": rate, "seeds": validation[rate]} for rate in validation
        ],
        "test_accuracy": [runs.accuracy(each, dataset.test) for each in finalists],
        "final_losses": [each.final_losses for each in finalists],
    }


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = tyro.cli(Config, prog="python -m experiments.compare", description=__doc__)
        config.output.mkdir(parents=True, exist_ok=True)
        columns = (
            TextColumn("{task.description:>16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs, remaining"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            results = compare(config, progress)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(comparison_report.table(results))
    for note in comparison_report.notes(results):
        console.print(note, soft_wrap=True)
    results_file, plot_file = config.output / "results.json", config.output / "comparison.png"
    results_file.write_text(json.dumps(results, indent=1) + "\n")
    comparison_report.plot(results, plot_file)
    console.print(f"Wrote {results_file} and {plot_file}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
