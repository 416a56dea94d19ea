"""Train a recipe of the paper's scale and put the result beside the published one.

A recipe is a file of settings of `experiments.train` in `app/recipes/`. The same command
continues a run that was stopped. For accuracy against cost and budgeted batches, run
`experiments.evaluate` on the workdir.
"""

import dataclasses
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from experiments import train
from experiments.app import command_line
from experiments.app.config import Config as Run
from experiments.app.settings import require
from experiments.lab.report import Table

_RECIPES = Path(__file__).parent / "app" / "recipes"
Method = Literal["sgd", "clipped", "osgd", "pcd", "last", "mixed"]
# A forward pass and two of its size backward, of two operations for each multiply-add.
_OPERATIONS = 6
# Operations a second that an H100 (SXM) is assumed to do: a hundredth of its dense peak in TF32, as
# kernels are short on small images in batches of 64; in bfloat16, on large ones, a twentieth.
_SPEED = {"float32": 494.7e12 / 100, "bfloat16": 989.4e12 / 20}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to train.

    Attributes:
      recipe: name of a file in experiments/app/recipes/, without its ending.
      method: sgd on the sum of the losses; clipped to norm 1; osgd; pcd; the last output alone; or
        mixed, all outputs from the weights that "last" has left (arXiv 2407.14320).
      data: another data set than the recipe's, as for experiments.train.
      train_size: training examples, to rehearse.
      epochs: passes over them, to rehearse.
      seed: of everything drawn at random.
      data_dir: where tensorflow_datasets keeps what it has prepared.
      manual_dir: where tensorflow_datasets finds archives downloaded by hand.
      output: folder, in which each run has its own.
    """

    recipe: tyro.conf.Positional[str]
    method: Method = "osgd"
    data: str | None = None
    train_size: int | None = None
    epochs: int | None = None
    seed: int = 0
    data_dir: Path | None = None
    manual_dir: Path | None = None
    output: Path = Path("runs/paper_scale")

    def __post_init__(self):
        require(self, fields=("train_size", "epochs"), at_least=1)
        if self.recipe not in names():
            raise ValueError(f"recipe={self.recipe!r} must be one of {', '.join(names())}.")

    @property
    def workdir(self) -> Path:
        """The folder of the run."""
        data = [] if self.data is None else [self.data.replace(":", "-").replace("/", "-")]
        return self.output / "_".join([self.recipe, *data, self.method, str(self.seed)])


def names() -> list[str]:
    """All recipes."""
    return sorted(path.stem for path in _RECIPES.glob("*.toml"))


def read(recipe: str) -> tuple[dict[str, Any], dict[str, dict[str, list[float]]]]:
    """Settings, and published accuracies of the outputs in percent, by data set and net."""
    settings = tomllib.loads((_RECIPES / f"{recipe}.toml").read_text())
    return settings, settings.pop("published", {})


def run_of(config: Config) -> Run:
    """The settings of the run."""
    settings, _ = read(config.recipe)
    last = [0.0] * (settings["outputs"] - 1) + [1.0]
    first = dataclasses.replace(config, method="last").workdir
    of_method: dict[Method, dict[str, Any]] = {
        "sgd": {"optimizer": "sgd"},
        "clipped": {"optimizer": "sgd", "clip_norm": 1.0},
        "osgd": {"optimizer": "osgd"},
        "pcd": {"optimizer": "pcd"},
        "last": {"optimizer": "sgd", "loss_weights": last},
        "mixed": {"optimizer": "sgd", "start_from": first},
    }
    given = ("data", "train_size", "epochs", "seed", "data_dir", "manual_dir", "workdir")
    own = {name: getattr(config, name) for name in given}
    return Run.from_json(
        settings
        | of_method[config.method]
        | {name: value for name, value in own.items() if value is not None}
    )


def work(multiply_adds: int, examples: int) -> float:
    """Count the operations of SGD on so many examples, each as often as it is seen."""
    return _OPERATIONS * multiply_adds * examples


def h100_hours(operations: float, precision: str) -> float:
    """Estimate how long so many operations take on an H100."""
    return operations / _SPEED[precision] / 3600


def page(config: Config, run: Run, summary: Mapping[str, Any]) -> str:
    """A table of the outputs, ours beside those that are published for the same data."""
    _, published = read(config.recipe)
    found = published.get(run.dataset.data, {})
    rows = [
        [
            str(k + 1),
            f"{summary['multiply_adds'][k] / 1e6:.1f}",
            f"{100 * summary['validation_accuracy'][k]:.1f}",
            f"{100 * summary['test_accuracy'][k]:.1f}",
            *[f"{each[k]:.1f}" for each in found.values()],
        ]
        for k in range(run.net.outputs)
    ]
    header = ["output", "million multiply-adds"]
    header += [f"{config.method}, {split}, %" for split in ("validation", "test")]
    header += [f"{name}, published, %" for name in found]
    about = f"# {config.recipe}, {config.method}\n\n{run.dataset.data}, {run.run.epochs} epochs"
    if config.train_size:
        about += f" of {config.train_size} examples: a rehearsal"
    examples = summary["steps"] * run.run.batch_size
    operations = work(summary["multiply_adds"][-1], examples)
    expected = h100_hours(operations, run.net.precision)
    about += f"; SGD's work is {operations:.2g} operations, an estimated {expected:.2g} hours of an"
    about += " H100"
    if summary["clock"] is not None:
        about += f"; {summary['clock']['seconds'] / 3600:.2f} hours in the last process"
    about += "."
    return f"{about}\n\n{Table('', header, rows).markdown}"


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = command_line.read(Config, "experiments.paper_scale", __doc__)
        if config.method == "mixed":
            train.train(run_of(dataclasses.replace(config, method="last")), console)
        run = run_of(config)
        summary = train.train(run, console)
    except train.devices.StoppedError as stopped:
        console.print(str(stopped), highlight=False)
        sys.exit(128 + stopped.number)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"error: {error}")
    text = page(config, run, summary)
    (config.workdir / "comparison.md").write_text(text)
    console.print(text, highlight=False, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
