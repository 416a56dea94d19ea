"""Images as they are: `python -m experiments.studies.images --data folder:PATH`.

All training images of CIFAR-10 (JPEG) at full resolution, flipped and cropped at random, and two
nets whose last outputs have 5 million multiply-adds. Every method has the same rates, chosen by one
seed's validation accuracy after a third of the epochs; other seeds are tested at it. An output
alone is the same net with weight 0 on the other losses. Each run is one of `experiments.train` in a
folder beside the output; a stopped run goes on from its last epoch, and runs that the output holds
already are not trained again.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console

from experiments.app import data, methods
from experiments.app.augmentation import Augmentation
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.devices import StoppedError
from experiments.app.nets import Sizes
from experiments.app.settings import require
from experiments.app.training import train
from experiments.lab import report
from experiments.lab.report import Table
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Result, Run, Sweep
from osgd_jax import plots

TITLE = "CIFAR-10 (JPEG) at full resolution"

OUTPUTS = 3
_TESTS = 1000  # the first seed that tests

PROBLEMS: Mapping[str, Sizes] = MappingProxyType(
    {
        "width-nested": Sizes("width-nested", OUTPUTS, (12, 24, 48)),
        "branched": Sizes("branched", OUTPUTS, (10, 20, 40)),
    }
)

METHODS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "sum": {"optimizer": "sgd"},
        "sum, clipped": {"optimizer": "sgd", "clip_norm": 1.0},
        "osgd": {"optimizer": "osgd"},
        **{f"output {k + 1} alone": {"optimizer": "sgd", "clip_norm": 1.0} for k in range(OUTPUTS)},
    }
)
ALONE = tuple(name for name in METHODS if name.endswith("alone"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      problems: names of nets.
      methods: names of rows of the table.
      data: images, as for `python -m experiments.train`.
      rates: learning rates to choose from.
      test_seeds: seeds that test.
      epochs: passes over the training images in a test; a third of them chooses the rate.
      batch_size: examples in a step.
      output: file of the rows; runs have their folders beside it.
    """

    problems: tuple[str, ...] = tuple(PROBLEMS)
    methods: tuple[str, ...] = tuple(METHODS)
    data: str = "folder:cifar10_jpeg"
    rates: tuple[float, ...] = (0.1, 0.3, 0.9)
    test_seeds: int = 3
    epochs: int = 24
    batch_size: int = 100
    output: Path = Path("runs/images/rows.jsonl.gz")

    def __post_init__(self):
        require(self, fields=("test_seeds", "batch_size"), at_least=1)
        require(self, fields=("epochs",), at_least=3)
        require(self, fields=("rates",), above=0)
        for field, known in (("problems", PROBLEMS), ("methods", METHODS)):
            if unknown := set(getattr(self, field)) - set(known):
                raise ValueError(f"{field}={unknown} are unknown; use some of {'; '.join(known)}.")


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks; draw the figure and return the tables."""
    settings = {name: getattr(config, name) for name in ("rates", "epochs", "batch_size")}
    settings["data"] = config.data.split("/")[-1]
    store = Store(config.output, settings, report.about("experiments.studies.images"))
    asked, seeds = "Does a method beat clipping?", range(_TESTS, _TESTS + config.test_seeds)
    question = Question(asked, config.problems, config.methods, range(1), seeds)

    def answer(problem: str, method: str, stage: str, runs: list[Run]) -> Iterator[list[Row]]:
        for run in runs:
            yield [run._asdict() | {"stage": stage} | _trained(config, problem, method, stage, run)]

    sweep(store).answer(question, answer, advance)
    draw(store, config.output.parent)
    return tables(store)


def settings_of(config: Config, problem: str, method: str, stage: str, run: Run) -> TrainConfig:
    """Return the settings of one run."""
    name = "-".join((problem, method, stage, f"{run.learning_rate:g}", str(run.seed)))
    weights = None
    if method in ALONE:
        weights = tuple(float(name == method) for name in ALONE)
    return TrainConfig(
        workdir=config.output.parent / name.replace(", ", "-").replace(" ", "-"),
        dataset=data.Source(config.data),
        net=PROBLEMS[problem],
        method=methods.Settings(**METHODS[method], weight_decay=5e-4),
        augmentation=Augmentation(pad_crop=4, flip=True),
        run=RunSettings(
            config.epochs // 3 if stage == "tune" else config.epochs,
            config.batch_size,
            run.learning_rate,
            loss_weights=weights,
            seed=run.seed,
            log_every=100,
            keep_last=1,
        ),
    )


def _trained(config: Config, problem: str, method: str, stage: str, run: Run) -> Row:
    outputs = [ALONE.index(method)] if method in ALONE else range(OUTPUTS)
    try:
        summary = train(settings_of(config, problem, method, stage, run), Console(quiet=True))
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(128 + stopped.number)
    except FloatingPointError:
        return {"accuracy": [0.0 for _ in outputs]}
    found = summary["validation_accuracy" if stage == "tune" else "test_accuracy"]
    costs = {"multiply_adds": [summary["multiply_adds"][k] for k in outputs]}
    return {"accuracy": [round(found[k], 5) for k in outputs]} | costs


def sweep(store: Store) -> Sweep:
    """Return the rows with this study's grid."""
    return Sweep(store, rates=lambda method: store.about["settings"]["rates"])


def results(store: Store) -> dict[str, dict[str, Result]]:
    """Return the tests of each method by problem."""
    return sweep(store).results(PROBLEMS, METHODS, range(1), range(_TESTS, 2 * _TESTS))


def tables(store: Store) -> list[Table]:
    """Return the table of the study."""
    title = "Test accuracy in percent, means over seeds with 95 % intervals; * a rate at an edge"
    outputs = [f"output {k + 1}" for k in range(OUTPUTS)]
    less = "mean over the clipped sum's"
    table = Table(title, ["net", "method", "rate", *outputs, less, "seeds"], words=2)
    for problem, each in results(store).items():
        for name, result in each.items():
            shown = [f"{each:.1f}" for each in result.intervals]
            if name in ALONE:
                shown = [shown[0] if name == alone else "" for alone in ALONE]
            base = each.get("sum, clipped")
            over = ""
            if base is not None and name not in ("sum, clipped", *ALONE):
                over = f"{result.over(base):+.1f}"
            table.add(problem, name, result.shown_rate, *shown, over, len(result.tests))
    return [table]


def draw(store: Store, folder: Path) -> None:
    """Draw test accuracy against multiply-adds into a folder."""
    from matplotlib.figure import Figure

    found = results(store)
    figure = Figure(figsize=(5.4 * max(1, len(found)), 4.2), layout="constrained")
    panels = figure.subplots(1, max(1, len(found)), squeeze=False)[0]
    for axes, (problem, each) in zip(panels, found.items(), strict=False):
        for name, result in each.items():
            costs = result.rows[0].get("multiply_adds", [])
            style = {"color": "0.5", "linestyle": "none", "marker": "_"} if name in ALONE else {}
            if costs:
                plots.anytime_curve(costs, result.means, label=name, axes=axes, **style)
        axes.set_title(problem)
        axes.set_ylabel("test accuracy, %")
        axes.legend(fontsize="small")
    figure.savefig(folder / "images.png", dpi=110)


if __name__ == "__main__":
    report.program("experiments.studies.images", __doc__, Config, work)
