"""Do the losses conflict? `python -m experiments.studies.conflict`.

Nets are trained on the sum of their losses, at one learning rate that falls to zero along half a
cosine. At the beginning, in the middle and at the end of training the Gramian of the losses'
gradients is measured twice: on single batches, whose noise both losses share, and without this
bias. Where the training examples are few, the true gradients are the means over all of them; where
every example is fresh, they are the means over two independent sets. Of anytime nets the gradients
are those of the first stage's parameters, of equations those of all. Runs that the output holds
already are not trained again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from experiments.app import data, methods
from experiments.app.data import Split
from experiments.app.settings import require
from experiments.lab import report, sequences
from experiments.lab.report import Table
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Run, Sweep
from experiments.lab.vectorized import Trainer
from experiments.pinn.problems import PROBLEMS as EQUATIONS
from experiments.pinn.training import Solver
from experiments.studies import equations
from experiments.studies.anytime.problems import FAMILIES, IMAGES, SCREEN, NetProblem
from experiments.studies.language.ways import NETS, OUTPUTS
from osgd_jax import plots

TITLE = "Conflict between losses, on a batch and without its noise"

# Shares of training after which the gradients are looked at.
MOMENTS: Mapping[str, float] = MappingProxyType({"beginning": 7 / 40, "middle": 25 / 40, "end": 1})

# Every method trains on the sum, at one rate.
RATES: Mapping[str, float] = MappingProxyType({"sgd": 0.2, "adamw": 3e-3, "adam": 1e-2})

_DIGITS = 4

# The gradients and the Gramian of a batch, of many nets at once.
Gradients = Callable[[Any, Any], tuple[Any, jax.Array]]


class Look(NamedTuple):
    """Gramians of many nets at one moment.

    Attributes:
      same: mean Gramian of the gradients of single batches, `[nets, K, K]`.
      cross: unbiased Gramian of the true gradients, `[nets, K, K]`.
    """

    same: np.ndarray
    cross: np.ndarray


def look(
    gradients: Gradients, state: Any, first: Iterable[Any], second: Iterable[Any] | None
) -> Look:
    """Measure Gramians at fixed parameters.

    Args:
      gradients: of one batch.
      state: of the nets.
      first: batches.
      second: independent batches; None if the first ones are all there are, so that the mean of
        their gradients is the true gradient.
    """
    one, same = _means(gradients, state, first)
    other = one if second is None else _means(gradients, state, second)[0]
    cross = jax.vmap(osgd_jax.gramian)(one, other)
    return Look(*map(np.asarray, (same, cross)))


def _means(gradients: Gradients, state: Any, batches: Iterable[Any]) -> tuple[Any, jax.Array]:
    total, count = None, 0
    for batch in batches:
        found, count = gradients(state, batch), count + 1
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return jax.tree.map(lambda leaf: leaf / count, total)


class NetRuns:
    """Trains anytime nets and looks at their gradients.

    Args:
      trainer: trains the nets.
      fresh: two sets of examples that are independent of each other and of the training set; None
        to take the whole training set for the truth.
    """

    def __init__(self, trainer: Trainer, fresh: tuple[Split, Split] | None = None):
        self.trainer, self._fresh = trainer, fresh
        self._gradients = trainer.over_nets(self._gradients_one)

    def __call__(self, runs: list[Run]) -> Iterator[tuple[list[Run], list[Look]]]:
        """Train the runs; yield each group with its looks, one for each of `MOMENTS`."""
        looks, moments = [], [round(share * self.trainer.epochs) for share in MOMENTS.values()]

        def watch(epoch: int, state: Any, _: Any) -> None:
            if epoch in moments:
                looks.append(self._look(state))

        for group in self.trainer.groups(runs):
            looks.clear()
            watch(self.trainer.epochs, self.trainer.train(group, watch=watch).state, None)
            yield group, list(looks)

    def _look(self, state: Any) -> Look:
        first, second = self._fresh or (self.trainer.dataset.train, None)
        batches = None if second is None else self._batches(second)
        return look(self._gradients, state, self._batches(first), batches)

    def _batches(self, split: Split) -> Iterator[Any]:
        count, size = self.trainer.group, self.trainer.batch_size
        for start in range(0, split.size - size + 1, size):
            batch = split.read(np.arange(start, start + size))
            yield tuple(np.broadcast_to(each, (count, *each.shape)) for each in batch)

    def _gradients_one(self, state: Any, examples: Any) -> tuple[Any, jax.Array]:
        losses, batch = self.trainer.losses, self.trainer.batch(*examples)
        grads = osgd_jax.task_grads(losses)(state.params, state.rest, batch)["stages"][0]
        return grads, osgd_jax.gramian(grads)


class EquationRuns:
    """Trains physics-informed nets and looks at their gradients at fresh points.

    Args:
      solver: computes a run.
      draws: number of batches of points in each of two sets.
    """

    def __init__(self, solver: Solver, draws: int):
        self._solver, self._draws = solver, draws
        self._start = jax.jit(jax.vmap(solver.start))
        self._advance = jax.jit(jax.vmap(solver.advance, (0, 0, None, None)), static_argnums=3)
        self._gradients = jax.jit(jax.vmap(self._gradients_one, (0, None)))

    def __call__(self, runs: list[Run]) -> Iterator[tuple[list[Run], list[Look]]]:
        """Train the runs; yield them with their looks, one for each of `MOMENTS`."""
        rates = jnp.array([run.learning_rate for run in runs])
        state, looks, done = self._start(jnp.array([run.seed for run in runs]), rates), [], 0
        sets = jax.random.split(jax.random.key(0), (2, self._draws))
        for share in MOMENTS.values():
            steps = round(share * self._solver.settings.steps) - done
            state = self._advance(state, rates, done, steps)
            done += steps
            looks.append(look(self._gradients, state, *sets))
        yield runs, looks

    def _gradients_one(self, state: Any, key: jax.Array) -> tuple[Any, jax.Array]:
        solver, sizes = self._solver, self._solver.settings
        points = solver.problem.sample(key, sizes.points, sizes.edge_points, sizes.sampling)

        def losses(params: Any) -> dict[str, jax.Array]:
            return solver.problem.losses(solver.field(params, state.rest), points)

        grads = osgd_jax.task_grads(losses)(state.params)
        return grads, osgd_jax.gramian(grads)


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      problems: names of rows of the table.
      seeds: how many; five are the fewest that give an interval.
      cifar10_jpeg: folder of CIFAR-10 (JPEG): train and test, with a folder for each class.
      fresh: examples in each of two sets that give the true gradients where examples are fresh.
      draws: batches of points in each of two sets that give those of equations.
      output: file of the rows; the figure is drawn beside it.
    """

    problems: tuple[str, ...] = ()
    seeds: int = 6
    cifar10_jpeg: Path | None = None
    fresh: int = 10_000
    draws: int = 200
    output: Path = Path("runs/conflict/rows.jsonl.gz")

    def __post_init__(self):
        require(self, fields=("seeds", "fresh", "draws"), at_least=1)
        if unknown := set(self.problems) - set(PROBLEMS):
            raise ValueError(
                f"problems={unknown} are unknown; use some of {', '.join(PROBLEMS)}, or none for"
                " all."
            )


def _net(problem: NetProblem, config: Config) -> NetRuns:
    dataset = problem.load(None, config.cifar10_jpeg)
    return NetRuns(problem.trainer(dataset, _summed("sgd"), config.seeds))


def _fresh(problem: NetProblem, config: Config) -> NetRuns:
    """Train on sequences of which none comes twice in a pass."""
    dataset = sequences.load(problem.train_size, held_out=problem.batch_size)
    sets = [sequences.draw(config.fresh, seed) for seed in (3, 4)]
    first, second = (sequences.standardised(each, problem.train_size) for each in sets)
    return NetRuns(problem.trainer(dataset, _summed("sgd"), config.seeds), (first, second))


def _language(net: str, config: Config) -> NetRuns:
    dataset = data.load(data.Source("pydoc", 1200, text_length=64))

    def make(rngs: Any) -> Any:
        sizes = {} if net == "branched" else {"num_outputs": OUTPUTS}
        return NETS[net](vocab_size=dataset.num_classes, rngs=rngs, **sizes)

    return NetRuns(Trainer(make, dataset, _summed("adamw"), epochs=4, batch_size=4))


def _equation(name: Any, config: Config) -> EquationRuns:
    settings = equations.settings(equations.Config(), name, "sum, clipped")
    return EquationRuns(Solver(EQUATIONS[name], settings), config.draws)


def _summed(update: Any) -> methods.Method:
    clip_norm = 1.0 if update == "adamw" else None
    return methods.method(methods.Settings("sgd", update=update, clip_norm=clip_norm))


# What trains a problem and looks, and the name of its method.
PROBLEMS: dict[str, tuple[Callable[[Config], NetRuns | EquationRuns], str]] = {
    **{each.name: (functools.partial(_net, each), "sgd") for each in FAMILIES[:4]},
    "mnist1d-width, 60,000 fresh": (
        functools.partial(_fresh, dataclasses.replace(SCREEN, train_size=60_000, epochs=4)),
        "sgd",
    ),
    **{
        each.name: (functools.partial(_net, each), "sgd")
        for each in IMAGES
        if each.name in ("cifar-width", "cifar-depth", "cifar-branched")
    },
    **{
        f"language, {net}": (functools.partial(_language, net), "adamw")
        for net in ("width", "branched")
    },
    **{
        name: (functools.partial(_equation, name), "adam")
        for name in ("burgers", "helmholtz", "klein_gordon")
    },
}


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks; draw the figure and return the table.

    Raises:
      ValueError: images are asked for, and their folder is not given.
    """
    settings = {"fresh": config.fresh, "draws": config.draws}
    store = Store(config.output, settings, report.about("experiments.studies.conflict"))
    runs = Sweep(store, rates=lambda method: (RATES[method],))

    def train(problem: str, method: str, stage: str, wanted: list[Run]) -> Iterator[list[Row]]:
        for group, looks in PROBLEMS[problem][0](config)(wanted):
            yield [
                run._asdict()
                | {
                    "stage": stage,
                    "same": _kept(looks, "same", i),
                    "cross": _kept(looks, "cross", i),
                }
                for i, run in enumerate(group)
            ]

    for problem in config.problems or PROBLEMS:
        method, seeds = PROBLEMS[problem][1], range(config.seeds)
        question = Question("Do the losses conflict?", (problem,), (method,), range(0), seeds)
        runs.answer(question, train, advance)
    draw(store, config.output.parent)
    return tables(store)


def _kept(looks: list[Look], field: str, net: int) -> list[Any]:
    """Return a net's Gramians at each moment, with as many digits as they are worth."""
    values = np.array([getattr(each, field)[net] for each in looks], float)
    return np.vectorize(lambda value: float(f"{value:.{_DIGITS}g}"))(values).tolist()


def seen(store: Store) -> dict[str, list[tuple[np.ndarray, np.ndarray, osgd_jax.Diagnosis]]]:
    """Return Gramians of all seeds, same-batch and unbiased, and their diagnosis by moment."""
    found = {}
    for problem, (_, method) in PROBLEMS.items():
        if rows := store.of(problem, method):
            same, cross = (np.array([row[kind] for row in rows]) for kind in ("same", "cross"))
            found[problem] = [
                (same[:, k], cross[:, k], osgd_jax.diagnose(same[:, k], cross=cross[:, k]))
                for k in range(len(MOMENTS))
            ]
    return found


def tables(store: Store) -> list[Table]:
    """Return the table of the study."""
    title = (
        "Cosines between the gradients of losses 1-2, 1-3 and 2-3, medians over the seeds; pairs"
        " that agree, conflict, and are undecided by their 95 % intervals; squared norm of a"
        " batch's gradient over the true one's"
    )
    header = ["problem", "when", "seeds", "same batch", "unbiased"]
    table = Table(title, [*header, "agree, conflict, undecided", "noise"], words=2)
    for problem, moments in seen(store).items():
        for moment, (same, cross, found) in zip(MOMENTS, moments, strict=True):
            pairs = np.triu_indices(same.shape[1], 1)
            low, high = found.cosine_intervals[pairs].T
            counts = (low > 0).sum(), (high < 0).sum(), ((low <= 0) & (high >= 0)).sum()
            shown = [" ".join(map(_signed, _cosines(each)[pairs])) for each in (same, cross)]
            ratios = np.sort(_ratios(same, cross))
            noise = f"{ratios[0]:.2g} to {ratios[-1]:.2g}"
            table.add(problem, moment, len(same), *shown, ", ".join(map(str, counts)), noise)
    return [table]


def _signed(cosine: float) -> str:
    return "–" if np.isnan(cosine) else f"{cosine:+.2f}"


def _cosines(gramians: np.ndarray) -> np.ndarray:
    """Return the median cosine over the seeds; NaN where a squared norm is not positive in half."""
    squares = np.diagonal(gramians, axis1=1, axis2=2)
    lengths = np.sqrt(np.where(squares > 0, squares, np.nan))
    cosines = np.clip(gramians / lengths[:, :, None] / lengths[:, None, :], -1, 1)
    known = np.isfinite(cosines).mean(axis=0) > 0.5
    return np.where(known, np.nanmedian(np.where(known, cosines, 0), axis=0), np.nan)


def _ratios(same: np.ndarray, cross: np.ndarray) -> np.ndarray:
    """Return the squared norm of a batch's gradient over the true one's, by loss."""
    squares = [np.diagonal(each, axis1=1, axis2=2).mean(axis=0) for each in (same, cross)]
    return squares[0] / np.maximum(squares[1], 1e-3 * squares[0])


def draw(store: Store, folder: Path) -> None:
    """Draw both kinds of cosine over training into a folder."""
    from matplotlib.figure import Figure

    found = seen(store)
    columns = min(len(found), 5)
    rows = -(-len(found) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (problem, moments) in zip(panels, found.items(), strict=False):
        same, diagnoses = [_cosines(each) for each, _, _ in moments], [d for _, _, d in moments]
        names = [f"loss {k + 1}" for k in range(same[0].shape[0])]
        shares = list(MOMENTS.values())
        plots.cosines(shares, np.array(same), names=names, unbiased=diagnoses, axes=axes)
        axes.set_title(problem, fontsize="small")
        axes.set_xlabel("share of training")
        if axes is not panels[0]:
            axes.set_ylabel("")
            axes.get_legend().remove()
    for axes in panels[len(found) :]:
        axes.remove()
    figure.savefig(folder / "unbiased_cosines.png", dpi=110)


if __name__ == "__main__":
    report.program("experiments.studies.conflict", __doc__, Config, work)
