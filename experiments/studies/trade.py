"""Measure what methods trade between outputs: `python -m experiments.studies.trade`.

The first output's loss against the last one's, for each method, beside the losses of outputs that
are trained alone. Every method has the same grid of learning rates; the rate with the least mean
validation loss over the outputs is taken, and other seeds are tested at it. Training and test
sequences are drawn from the generator of MNIST-1D. All methods but "sum" clip the gradient to norm
1. Runs that the output holds already are not trained again.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

import osgd_jax
from experiments.app import methods
from experiments.app.data import Dataset
from experiments.app.methods import Method
from experiments.app.nets import ResNetFamily, Sizes, make_net
from experiments.app.settings import require
from experiments.lab import report, sequences
from experiments.lab.report import Table
from experiments.lab.statistics import interval
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Result, Sweep
from experiments.lab.vectorized import Trained, Trainer, Training
from osgd_jax import nets, weightings

TITLE = "What a method trades between outputs"

OUTPUTS = 3
_TESTS = 1000  # the first seed that tests

# What a loss that is no number counts as: well above that of a uniform guess, 2.3.
_DIVERGED = 10.0


class Problem(NamedTuple):
    """A net and the number of its training sequences.

    Attributes:
      net: family of convolutional nets, or the width of a dense net's first stage.
      train_size: training sequences.
      seeds: largest number of test seeds.
      length: of training, a share of the study's steps.
    """

    net: ResNetFamily | int
    train_size: int
    seeds: int = 20
    length: float = 1.0


PROBLEMS: Mapping[str, Problem] = MappingProxyType(
    {
        "dense, 60,000": Problem(20, 60_000),
        "dense, 8,000": Problem(20, 8_000),
        "dense, 1,000": Problem(20, 1_000),
        "dense, half as wide, 60,000": Problem(10, 60_000),
        "dense, twice as wide, 60,000": Problem(40, 60_000),
        "width-nested, 20,000": Problem("width-nested", 20_000, seeds=10, length=1 / 3),
        "branched, 20,000": Problem("branched", 20_000, seeds=10, length=1 / 3),
    }
)

ALONE = tuple(f"output {k + 1} alone" for k in range(OUTPUTS))
DETACHED = "earlier stages detached"

# Weights of the first output's loss.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {f"first × {weight}": weight for weight in (3, 10, 30)}
)

BALANCES: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "osgd, first to last": {"optimizer": "osgd"},
        "osgd, last to first": {"optimizer": "osgd", "order": "last_to_first"},
        "pcd": {"optimizer": "pcd", "scope": "shared"},
        "upgrad": {"optimizer": "upgrad", "scope": "shared"},
        "aligned_mtl": {"optimizer": "aligned_mtl", "scope": "shared"},
    }
)

METHODS = ("sum", "sum, clipped", *WEIGHTS, DETACHED, *BALANCES, *ALONE)


def method(name: str) -> Method:
    """Return a method of the table."""
    settings = {"optimizer": "sgd", "clip_norm": 1.0} | BALANCES.get(name, {})
    settings |= {"clip_norm": None} if name == "sum" else {}
    made = methods.method(methods.Settings(**settings), num_tasks=OUTPUTS)
    if name in ALONE:
        return dataclasses.replace(made, output=ALONE.index(name))
    if name in WEIGHTS:
        weights = (WEIGHTS[name], *[1.0] * (OUTPUTS - 1))
        return dataclasses.replace(made, balance=osgd_jax.aggregate(weightings.constant(weights)))
    return made


class DenseStage(nnx.Module):
    """A hidden layer and a classifier of its units."""

    def __init__(self, inputs: int, width: int, num_classes: int, rngs: nnx.Rngs):
        self.layer = nnx.Linear(inputs, width, rngs=rngs)
        self.head = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, carry: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return logits and hidden units."""
        hidden = nnx.relu(self.layer(carry.reshape(len(carry), -1)))
        return self.head(hidden), hidden


class Detached(nnx.Module):
    """A net whose later outputs send no gradient to earlier stages."""

    def __init__(self, net: nets.AnytimeNet):
        self.net = net

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Return the logits of each output."""
        carry, outputs = self.net.start(x), []
        for k in range(self.net.num_outputs):
            logits, carry = self.net.advance(k, jax.lax.stop_gradient(carry))
            outputs.append(logits)
        return tuple(outputs)


def make(problem: Problem, detached: bool, dataset: Dataset, rngs: nnx.Rngs) -> nnx.Module:
    """Make a problem's net."""
    if isinstance(problem.net, int):
        widths = [problem.net * 2**k for k in range(OUTPUTS)]
        inputs = [int(np.prod(dataset.input_shape)), *widths]
        stages = [
            DenseStage(*sizes, dataset.num_classes, rngs)
            for sizes in zip(inputs, widths, strict=False)
        ]
        net = nets.AnytimeNet(stages, num_classes=dataset.num_classes)
    else:
        blocks = (2, 2) if problem.net == "branched" else None
        net = make_net(Sizes(problem.net, OUTPUTS, (16, 16), blocks), dataset, rngs)
    return Detached(net) if detached else net


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      problems: names of nets and numbers of sequences.
      methods: names of rows of the tables.
      rates: learning rates to choose from.
      tuning_seeds: seeds that choose the rate.
      test_seeds: other seeds that test; fewer for the convolutional nets.
      steps: of SGD with Nesterov momentum, to the nearest epoch; a third for convolutional nets.
      batch_size: examples in a step.
      held_out: validation sequences, and as many test sequences.
      output: file of the rows.
    """

    problems: tuple[str, ...] = tuple(PROBLEMS)
    methods: tuple[str, ...] = METHODS
    rates: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0)
    tuning_seeds: int = 5
    test_seeds: int = 20
    steps: int = 6000
    batch_size: int = 64
    held_out: int = 5000
    output: Path = Path("runs/trade.jsonl.gz")

    def __post_init__(self):
        counts = ("tuning_seeds", "test_seeds", "steps", "batch_size", "held_out")
        require(self, fields=counts, at_least=1)
        require(self, fields=("rates",), above=0)
        for field, known in (("problems", tuple(PROBLEMS)), ("methods", METHODS)):
            if unknown := set(getattr(self, field)) - set(known):
                raise ValueError(f"{field}={unknown} are unknown; use some of {'; '.join(known)}.")

    def question(self, problem: str) -> Question:
        """Return the question for one problem."""
        seeds = range(_TESTS, _TESTS + min(self.test_seeds, PROBLEMS[problem].seeds))
        tuned = range(self.tuning_seeds)
        return Question("What does a method trade?", (problem,), self.methods, tuned, seeds)


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks; draw the figure beside it and return the tables."""
    names = ("rates", "tuning_seeds", "steps", "batch_size", "held_out")
    settings = {name: getattr(config, name) for name in names}
    store = Store(config.output, settings, report.about("experiments.studies.trade"))
    training = Training(functools.partial(_trainer, config), losses_of)
    for problem in config.problems:
        sweep(store).answer(config.question(problem), training, advance)
    draw(store, config.output.parent)
    return tables(store)


def _trainer(config: Config, problem: str, name: str) -> Trainer:
    chosen = PROBLEMS[problem]
    dataset = sequences.load(chosen.train_size, config.held_out)
    steps_per_epoch = chosen.train_size // config.batch_size
    return Trainer(
        functools.partial(make, chosen, name == DETACHED, dataset),
        dataset,
        method(name),
        epochs=max(1, round(chosen.length * config.steps / steps_per_epoch)),
        batch_size=config.batch_size,
        group=min(len(config.question(problem).seeds), config.tuning_seeds * len(config.rates)),
    )


def losses_of(trainer: Trainer, trained: Trained, stage: str) -> list[Row]:
    """Return each net's losses, on validation data for "tune" and else on test data."""
    split = trainer.dataset.validation if stage == "tune" else trainer.dataset.test
    accuracies, losses = trainer.scores(trained, split)
    losses = np.where(np.isfinite(losses), losses, _DIVERGED)
    measured = zip(losses.round(5).tolist(), accuracies.round(5).tolist(), strict=True)
    return [{"loss": loss, "accuracy": accuracy} for loss, accuracy in measured]


def sweep(store: Store) -> Sweep:
    """Return the rows with this study's grid and scores, which are losses."""
    return Sweep(
        store,
        rates=lambda method: store.about["settings"]["rates"],
        score=lambda row: -float(np.mean(row["loss"])),
        outcome=lambda row: np.array(row["loss"]),
    )


def results(store: Store) -> dict[str, dict[str, Result]]:
    """Return the tests of each method by problem."""
    tuned = range(store.about["settings"]["tuning_seeds"])
    return sweep(store).results(PROBLEMS, METHODS, tuned, range(_TESTS, 2 * _TESTS))


def tables(store: Store) -> list[Table]:
    """Return all tables of the study."""
    found = results(store)
    return [_losses(found), _over_alone(found), _over_clipped(found)]


_Results = Mapping[str, Mapping[str, Result]]
_OUTPUTS = [f"output {k + 1}" for k in range(OUTPUTS)]


def _losses(found: _Results) -> Table:
    title = "Test losses, the mean over seeds; * is a rate at an edge of the grid"
    table = Table(title, ["problem", "method", "rate", *_OUTPUTS, "mean", "seeds"], words=2)
    for problem, each in found.items():
        for name, result in each.items():
            means = [f"{mean:.3f}" for mean in result.means]
            if name in ALONE:
                shown = [means[0] if name == alone else "" for alone in (*ALONE, None)]
            else:
                shown = [*means, f"{result.means.mean():.3f}"]
            table.add(problem, name, result.shown_rate, *shown, len(result.tests))
    return table


def _over_alone(found: _Results) -> Table:
    title = "Test losses less those of each output trained alone, with 95 % intervals"
    table = Table(title, ["problem", "method", *_OUTPUTS], words=2)
    for problem, each in found.items():
        alone = [each[name] for name in ALONE if name in each]
        for name, result in each.items():
            if len(alone) == OUTPUTS and name not in ALONE:
                base = {seed: np.ravel([a.tests[seed] for a in alone]) for seed in result.tests}
                table.add(problem, name, *_differences(result.tests, base)[:OUTPUTS])
    return table


def _over_clipped(found: _Results) -> Table:
    title = "Test losses less those of the clipped sum, with 95 % intervals"
    table = Table(title, ["problem", "method", *_OUTPUTS, "mean"], words=2)
    for problem, each in found.items():
        for name, result in each.items():
            if "sum, clipped" in each and name not in (*ALONE, "sum, clipped"):
                table.add(problem, name, *_differences(result.tests, each["sum, clipped"].tests))
    return table


def _differences(tests: Mapping[int, Any], base: Mapping[int, Any]) -> list[str]:
    """Return the differences of each output and of their mean, paired by seed."""
    less = np.array([tests[seed] - base[seed] for seed in tests.keys() & base.keys()])
    return [f"{interval(each):+.3f}" for each in (*less.T, less.mean(axis=1))]


def draw(store: Store, folder: Path) -> None:
    """Draw the last output's loss against the first one's into a folder."""
    from matplotlib.figure import Figure

    found = results(store)
    if not found:
        return
    figure = Figure(figsize=(4.4 * len(found), 4.4), layout="constrained")
    for axes, (problem, each) in zip(
        figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True
    ):
        for k, name in enumerate(METHODS):
            if name in each and name not in ALONE:
                first, *_, last = each[name].intervals
                axes.errorbar(
                    first.mean, last.mean, last.half_width, first.half_width,
                    marker="os^Dv<>"[k % 7], color=f"C{k % 10}", label=name,
                )  # fmt: skip
        for name, line in ((ALONE[0], axes.axvline), (ALONE[-1], axes.axhline)):
            if name in each:
                line(each[name].means[0], color="0.5", linestyle="--")
        axes.set_title(problem)
        axes.set_xlabel("test loss of the first output")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("test loss of the last output")
    figure.axes[-1].legend(fontsize="small")
    figure.savefig(folder / "trade.png", dpi=110)


if __name__ == "__main__":
    report.program("experiments.studies.trade", __doc__, Config, work)
