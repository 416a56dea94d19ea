"""Measure the cost of a new output of a trained net: `python -m experiments.studies.growth`.

Nets with two outputs are trained, get a third one, and are trained again: on the same sequences of
MNIST-1D, on four times as many, or on two classes that the old outputs have not seen. Four ways:
"frozen" trains the new stage alone; "held" takes steps that are orthogonal to the gradients of the
old losses; "joint" trains all outputs on the labels; "distilled" as well, but the old ones on their
own answers before. Every way has the same grid of learning rates; the rate with the best mean
validation accuracy over the outputs is taken, and other seeds are tested at it. Runs that the
output holds already are not trained again.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.app import methods
from experiments.app.data import Dataset
from experiments.app.methods import Method
from experiments.app.nets import ResNetFamily, Sizes, make_net
from experiments.app.settings import require
from experiments.app.step import Objective, evaluated_logits
from experiments.lab import report, sequences
from experiments.lab.report import Table
from experiments.lab.statistics import interval
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Result, Run, Sweep
from experiments.lab.vectorized import Trained, Trainer, Training
from osgd_jax import nets

TITLE = "Adding an output to a trained net"

OLD = 2
WAYS = ("frozen", "held", "joint", "distilled")
FAMILIES: Mapping[ResNetFamily, tuple[int, ...]] = {
    "width-nested": (8, 8),
    "depth-nested": (8, 8),
    "branched": (16, 16),
}
DATA = ("same", "more", "classes")
PROBLEMS = tuple(f"{family}, {kind}" for family in FAMILIES for kind in DATA)

_KNOWN = 8  # classes of the old outputs, where the data have new ones
_BATCH = 100
_TESTS = 1000  # the first seed that tests


class Data(NamedTuple):
    """Sequences that the old outputs are trained on, and those of the grown net.

    Attributes:
      old: for the net before it grows.
      new: for the grown net.
      known: number of classes in `old`; old outputs are tested on examples of these.
    """

    old: Dataset
    new: Dataset
    known: int


def load(kind: str, size: int, held_out: int) -> Data:
    """Make one of `DATA`, with `size` sequences for the old outputs, or those of old classes."""
    more = sequences.load(4 * size, held_out)
    same = dataclasses.replace(more, train=more.train.read(np.arange(size)))
    if kind == "classes":
        chosen = np.flatnonzero(same.train.labels < _KNOWN)
        return Data(dataclasses.replace(same, train=same.train.read(chosen)), same, _KNOWN)
    return Data(same, more if kind == "more" else same, same.num_classes)


class Before(nnx.Variable):
    """Weights that are not trained."""


class WithFormer(nnx.Module):
    """A grown net, whose logits are followed by those of the net before."""

    def __init__(self, grown: nets.AnytimeNet, former: nets.AnytimeNet):
        self.grown = grown
        self.graphdef, state = nnx.split(nnx.view(former, use_running_average=True))
        self.former = Before(nnx.to_pure_dict(state))

    def __call__(self, x: jax.Array) -> tuple[jax.Array, ...]:
        """Return logits of the old outputs and of the new one, then the old ones as they were."""
        former = nnx.merge(self.graphdef, self.former.get_value())
        return (*self.grown(x), *former(x))


@dataclasses.dataclass(frozen=True)
class GrowthObjective(Objective):
    """The losses of a way to train, from the logits of `WithFormer`."""

    way: str = "joint"

    def losses(self, logits: tuple[jax.Array, ...], targets: jax.Array) -> tuple[jax.Array, ...]:
        """Return the loss of each output that is trained."""
        old, new, former = logits[:OLD], logits[OLD : OLD + 1], logits[OLD + 1 :]
        if self.way == "frozen":
            return super().losses(new, targets)
        if self.way == "distilled":
            answers = [jax.nn.softmax(jax.lax.stop_gradient(each)) for each in former]
            kept = [
                optax.softmax_cross_entropy(each, answer).mean()
                for each, answer in zip(old, answers, strict=True)
            ]
            return (*kept, *super().losses(new, targets))
        return super().losses((*old, *new), targets)


def method(way: str) -> Method:
    """Return a way to train a grown net."""
    name = "osgd" if way == "held" else "sgd"
    made = methods.method(methods.Settings(name, clip_norm=1.0))
    if way == "held":
        return dataclasses.replace(made, balance=osgd_jax.orthogonalize(hold=tuple(range(OLD))))
    if way == "frozen":

        def optimizer(schedule: Any) -> Any:
            return optax.partition(
                {True: made.optimizer(schedule), False: optax.set_to_zero()}, _new
            )

        return dataclasses.replace(made, optimizer=optimizer)
    return made


def _new(params: Any) -> Any:
    """Return whether each parameter is of the new stage."""
    is_new = nets.stages_from(OLD)

    def of_new(path: tuple[Any, ...], leaf: Any) -> bool:
        return is_new(tuple(getattr(key, "key", None) for key in path), leaf)

    return jax.tree_util.tree_map_with_path(of_new, params)


class GrowthTrainer(Trainer):
    """Trains grown nets.

    Args:
      former: trained nets by seed, of 0 among others.
      way: how to train.
      known: number of classes that the old outputs have seen.
      **sizes: as for `Trainer`.
    """

    def __init__(
        self, former: Mapping[int, nets.AnytimeNet], way: str, known: int, *args: Any, **sizes: Any
    ):
        self._former, self._way, self.known = former, way, known
        super().__init__(functools.partial(self._grown, former[min(former)]), *args, **sizes)
        self.objective = GrowthObjective(way=way)
        self.answers = self.over_nets(self._answers_one)

    def split_net(self, seed: int) -> Any:
        """Return graph, parameters and other variables of a grown net and its former self."""
        return nnx.split(self._grown(self._former[seed], nnx.Rngs(seed)), nnx.Param, ...)

    def _grown(self, former: nets.AnytimeNet, rngs: nnx.Rngs) -> WithFormer:
        grown = nets.grow(former, OLD + 1, rngs=rngs)
        grown.train()
        if self._way == "frozen":
            for stage in grown.stages[:OLD]:
                stage.eval()
        return WithFormer(grown, former)

    def _answers_one(self, state: Any, inputs: jax.Array) -> jax.Array:
        logits = evaluated_logits(self.graphdef, state.params, state.rest, inputs)
        return jnp.stack(logits).argmax(-1)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      problems: family, and data after growing.
      ways: names of rows of the table.
      rates: learning rates to choose from.
      tuning_seeds: seeds that choose the rate.
      test_seeds: other seeds that test.
      train_size: sequences before growing.
      epochs: passes over them, before and after growing; as many steps on more data.
      former_rate: learning rate before growing.
      held_out: validation sequences, and as many test sequences.
      output: file of the rows; the figure is drawn beside it.
    """

    problems: tuple[str, ...] = PROBLEMS
    ways: tuple[str, ...] = WAYS
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    tuning_seeds: int = 3
    test_seeds: int = 12
    train_size: int = 1000
    epochs: int = 40
    former_rate: float = 0.6
    held_out: int = 2000
    output: Path = Path("runs/growth/rows.jsonl.gz")

    def __post_init__(self):
        counts = ("tuning_seeds", "test_seeds", "held_out")
        require(self, fields=counts, at_least=1)
        require(self, fields=("epochs",), at_least=4)
        require(self, fields=("train_size",), at_least=2 * _BATCH)
        require(self, fields=("rates", "former_rate"), above=0)
        for field, known in (("problems", PROBLEMS), ("ways", WAYS)):
            if unknown := set(getattr(self, field)) - set(known):
                raise ValueError(f"{field}={unknown} are unknown; use some of {'; '.join(known)}.")

    @property
    def question(self) -> Question:
        """The question."""
        tuned, seeds = range(self.tuning_seeds), range(_TESTS, _TESTS + self.test_seeds)
        asked = "What does a new output gain, and what do the old ones lose?"
        return Question(asked, self.problems, self.ways, tuned, seeds)


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks; draw the figure and return the tables."""
    names = ("rates", "tuning_seeds", "train_size", "epochs", "former_rate", "held_out")
    settings = {name: getattr(config, name) for name in names}
    store = Store(config.output, settings, report.about("experiments.studies.growth"))
    former = functools.lru_cache(1)(functools.partial(_former, config))

    def trainer(problem: str, way: str) -> GrowthTrainer:
        found, (_, new, known) = former(problem), _data(config, problem)
        epochs = config.epochs * config.train_size // new.train.size
        sizes = {"epochs": epochs, "batch_size": _BATCH, "group": _group(config)}
        return GrowthTrainer(found, way, known, new, method(way), **sizes)

    sweep(store).answer(config.question, Training(trainer, measured), advance)
    draw(store, config.output.parent)
    return tables(store)


def _data(config: Config, problem: str) -> Data:
    return load(problem.split(", ")[1], config.train_size, config.held_out)


def _group(config: Config) -> int:
    return min(config.test_seeds, config.tuning_seeds * len(config.rates))


def _former(config: Config, problem: str) -> dict[int, nets.AnytimeNet]:
    """Train the nets of all seeds, before they grow."""
    family: Any = problem.split(", ")[0]
    dataset = _data(config, problem).old
    trainer = Trainer(
        lambda rngs: make_net(Sizes(family, OLD, FAMILIES[family]), dataset, rngs),
        dataset,
        method("joint"),
        epochs=config.epochs,
        batch_size=_BATCH,
        group=_group(config),
    )
    seeds = (*config.question.tuned, *config.question.seeds)
    found = {}
    for group in trainer.groups([Run(seed, config.former_rate) for seed in seeds]):
        state = trainer.train(group).state
        for i, run in enumerate(group):
            params, rest = jax.tree.map(lambda leaf, i=i: leaf[i], (state.params, state.rest))
            found[run.seed] = nnx.merge(trainer.graphdef, params, rest)
    return found


def measured(trainer: Any, trained: Trained, stage: str) -> list[Row]:
    """Return the accuracies of each net, before and after, and the share of changed answers."""
    split = trainer.dataset.validation if stage == "tune" else trainer.dataset.test
    inputs = np.broadcast_to(split.inputs, (trainer.group, *split.inputs.shape))
    answers = np.asarray(trainer.answers(trained.state, inputs))
    known = split.labels < trainer.known
    correct = answers == split.labels
    old, former = (answers[:, part][..., known] for part in (slice(OLD), slice(OLD + 1, None)))
    measures = {
        "accuracy": [*correct[:, :OLD, known].mean(-1).T, correct[:, OLD].mean(-1)],
        "before": correct[:, OLD + 1 :, known].mean(-1).T,
        "changed": (old != former).mean(-1).T,
    }
    columns = {name: np.round(each, 5).T.tolist() for name, each in measures.items()}
    return [{name: each[i] for name, each in columns.items()} for i in range(trainer.group)]


def sweep(store: Store) -> Sweep:
    """Return the rows with this study's grid."""
    return Sweep(store, rates=lambda way: store.about["settings"]["rates"])


def results(store: Store) -> dict[str, dict[str, Result]]:
    """Return the tests of each way by problem."""
    tuned = range(store.about["settings"]["tuning_seeds"])
    return sweep(store).results(PROBLEMS, WAYS, tuned, range(_TESTS, 2 * _TESTS))


def tables(store: Store) -> list[Table]:
    """Return the table of the study."""
    title = (
        "Test accuracy in percent: the new output, and the change of the old ones; answers of the"
        " old outputs that changed; means over seeds with 95 % intervals"
    )
    header = ["problem", "way", "rate", "new output", "old output 1", "old output 2"]
    table = Table(title, [*header, "changed 1", "changed 2", "seeds"], words=2)
    for problem, each in results(store).items():
        for way, result in each.items():
            before, changed = (
                100 * np.array([row[name] for row in result.rows]) for name in ("before", "changed")
            )
            after = np.array(list(result.tests.values()))
            gains = [f"{interval(gain):+.1f}" for gain in (after[:, :OLD] - before).T]
            shown = [f"{result.intervals[OLD]:.1f}", *gains]
            shown += [f"{share:.1f} %" for share in changed.mean(axis=0)]
            table.add(problem, way, result.shown_rate, *shown, len(after))
    return [table]


def draw(store: Store, folder: Path) -> None:
    """Draw the new output's accuracy against changed answers into a folder."""
    from matplotlib.figure import Figure

    found = results(store)
    figure = Figure(figsize=(3.4 * max(1, len(found)), 3.6), layout="constrained")
    panels = figure.subplots(1, max(1, len(found)), squeeze=False)[0]
    for axes, (problem, each) in zip(panels, found.items(), strict=False):
        for way, result in each.items():
            changed = 100 * np.array([row["changed"] for row in result.rows]).mean(axis=1)
            x, y = interval(changed), result.intervals[OLD]
            axes.errorbar(
                x.mean, y.mean, y.half_width, x.half_width,
                marker="o", color=f"C{WAYS.index(way)}", label=way,
            )  # fmt: skip
        axes.set_title(problem)
        axes.set_xlabel("changed answers of the old outputs, %")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy of the new output, %")
    panels[-1].legend(fontsize="small")
    figure.savefig(folder / "growth.png", dpi=110)


if __name__ == "__main__":
    report.program("experiments.studies.growth", __doc__, Config, work)
