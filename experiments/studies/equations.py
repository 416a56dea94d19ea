"""Which method solves which equation best: `python -m experiments.studies.equations`.

Every method has the same budget: each of a few learning rates is tried on the tuning seeds, the one
with the least mean logarithm of the relative L2 error is taken, and other seeds are tested at it.
All take the same number of steps; one loss a step, whose steps take 0.4 of the time, also takes 2.5
times as many. A seed gives the same initial net and the same points to every method, so that
methods are compared in pairs. Runs that the output holds already are not trained again.

Every step has new points, and the nets see random Fourier features: in trials with the same points
for all steps, and coordinates alone, no method came near a solution in so few steps.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from experiments.app.settings import require
from experiments.lab import report
from experiments.lab.report import Table
from experiments.lab.statistics import Interval, paired_ratio
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Run, Sweep
from experiments.pinn.problems import PROBLEMS, Name, Problem, Sampling
from experiments.pinn.training import Solver, SolverSettings

TITLE = "Physics-informed nets: which method solves which problem best"

# What an error that is no number counts as: ten times that of a field of zeros.
_DIVERGED = 10.0

METHODS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "sum": {},
        "sum, clipped": {"clip_norm": 1.0},
        "sum, conditions × 10": {"condition_weight": 10.0},
        "sum, conditions × 100": {"condition_weight": 100.0},
        "osgd, pde first": {"method": "osgd", "order": "pde,bc,ic"},
        "osgd, pde last": {"method": "osgd", "order": "ic,bc,pde"},
        "config": {"method": "config"},
        "m_config, steps × 2.5": {"method": "m_config", "stretch": 2.5},
        "upgrad": {"method": "upgrad"},
        "pcd, pde first": {"method": "pcd", "order": "pde,bc,ic"},
        "pcd, pde first, tau 0": {"method": "pcd", "order": "pde,bc,ic", "tau": 0.0},
        "pcd, pde last": {"method": "pcd", "order": "ic,bc,pde"},
        "inverse_norms": {"method": "inverse_norms"},
    }
)

# Methods to be compared with each other: those without a weight to tune with the best fixed one,
# two orders, and PCD's promise of progress to the other losses with promises to do them no harm
# and of nothing.
_PAIRS = (
    ("config", "sum, conditions × 100"),
    ("inverse_norms", "sum, conditions × 100"),
    ("upgrad", "sum, conditions × 100"),
    ("osgd, pde last", "osgd, pde first"),
    ("pcd, pde first", "pcd, pde first, tau 0"),
    ("pcd, pde first", "osgd, pde first"),
    ("pcd, pde last", "osgd, pde last"),
)

_LOSSES = ("bc", "ic", "pde")
_SIZES = ("width", "layers", "frequencies", "points", "edge_points", "sampling")
_TESTS = 1000  # the first seed that tests


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the study.

    Attributes:
      problems: to solve.
      methods: names of rows of the table; all if not given.
      rates: learning rates to choose from.
      tuning_seeds: seeds that choose the rate; the seeds that test are others, as many as there
        are tuning seeds times rates, so that one program trains both.
      steps: of Adam.
      width: of the net's layers.
      layers: hidden layers.
      frequencies: of the Fourier features, with a standard deviation of one period.
      points: for the equation.
      edge_points: for each of the conditions.
      sampling: how points are drawn.
      looks: how often the gradients' conflict is measured in a run.
      output: file of the rows.
    """

    problems: tuple[Name, ...] = tuple(PROBLEMS)
    methods: tuple[str, ...] = tuple(METHODS)
    rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2, 1e-1)
    tuning_seeds: int = 3
    steps: int = 2000
    width: int = 20
    layers: int = 3
    frequencies: int = 10
    points: int = 200
    edge_points: int = 25
    sampling: Sampling = "latin_hypercube"
    looks: int = 10
    output: Path = Path("runs/equations.jsonl.gz")

    def __post_init__(self):
        counts = ("tuning_seeds", "steps", "width", "layers", "points", "edge_points", "looks")
        require(self, fields=counts, at_least=1)
        require(self, fields=("frequencies",), at_least=0)
        require(self, fields=("rates",), above=0)
        unknown = set(self.methods) - set(METHODS)
        if unknown:
            raise ValueError(f"methods={unknown} are unknown; use some of {', '.join(METHODS)}.")
        if self.methods[:1] != ("sum",):
            raise ValueError(
                f"methods={self.methods} must begin with sum, which all are held against."
            )
        if self.steps % self.looks:
            raise ValueError(f"steps={self.steps} must be a multiple of looks={self.looks}.")

    @property
    def question(self) -> Question:
        """The question, with as many test seeds as runs that tune."""
        seeds = range(_TESTS, _TESTS + self.tuning_seeds * len(self.rates))
        asked = "Which method solves which problem best?"
        return Question(asked, self.problems, self.methods, range(self.tuning_seeds), seeds)


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks and return the tables."""
    fields = ("rates", "tuning_seeds", "steps", "looks", *_SIZES)
    same = {name: getattr(config, name) for name in fields}
    store = Store(config.output, same, report.about("experiments.studies.equations"))
    runs = Sweep(
        store,
        rates=lambda method: config.rates,
        score=lambda row: -float(np.log(row["error"])),
        outcome=lambda row: np.log(row["error"]),
    )
    runs.answer(config.question, EquationTraining(config), advance)
    return tables(store)


class EquationTraining:
    """Trains all runs of one stage at once, for `Sweep.answer`."""

    def __init__(self, config: Config):
        self._config = config
        self._compiled = functools.lru_cache(1)(self._compile)

    def __call__(
        self, problem: str, method: str, stage: str, runs: list[Run]
    ) -> Iterator[list[Row]]:
        """Train the runs; with tests comes a row on the conflict in all of them."""
        trainer, *programs = self._compiled(problem, method)
        begun = time.perf_counter()
        seen = self._train(trainer, programs, runs)
        keys = [{"stage": stage, "learning_rate": r.learning_rate, "seed": r.seed} for r in runs]
        rows = [key | {"error": float(seen.error[-1, i])} for i, key in enumerate(keys)]
        if stage == "test":
            for i, row in enumerate(rows):
                row["losses"] = {name: float(each[-1, i]) for name, each in seen.losses.items()}
            gramians = seen.gramian.reshape(-1, *seen.gramian.shape[2:])
            found = osgd_jax.diagnose(gramians, dict.fromkeys(trainer.names, 0.0))
            conflict = {
                "tasks": list(found.tasks),
                "cosines": found.cosines.tolist(),
                "opposed": found.opposed.tolist(),
                "norm_ratio": found.norm_ratio,
                "alignment": found.alignment,
                "seconds": time.perf_counter() - begun,
            }
            rows.append(keys[0] | {"stage": "look"} | conflict)
        yield rows

    def _compile(self, problem: str, method: str) -> tuple[Solver, Any, Any, Any]:
        """Return start, a part of the steps, and a look, each of many nets."""
        trainer = Solver(_problem(problem), settings(self._config, problem, method))
        count = trainer.settings.steps // self._config.looks
        advance = functools.partial(trainer.advance, count=count)
        return (
            trainer,
            jax.jit(jax.vmap(trainer.start)),
            jax.jit(jax.vmap(advance, in_axes=(0, 0, None)), donate_argnums=0),
            jax.jit(jax.vmap(trainer.look)),
        )

    def _train(self, trainer: Solver, programs: Any, runs: list[Run]) -> Any:
        """Return what is seen at each look, `[looks, nets, ...]`."""
        start, advance, look = programs
        rates = jnp.array([run.learning_rate for run in runs])
        state = start(jnp.array([run.seed for run in runs]), rates)
        looks, count = [], trainer.settings.steps // self._config.looks
        for part in range(self._config.looks):
            state = advance(state, rates, part * count)
            looks.append(jax.device_get(look(state)))
        seen = jax.tree.map(lambda *each: np.stack(each), *looks)
        return seen._replace(error=np.where(np.isfinite(seen.error), seen.error, _DIVERGED))


def _problem(name: Any) -> Problem:
    return PROBLEMS[name]


def settings(config: Config, problem: str, method: str) -> SolverSettings:
    """Return the settings of a run by a method of the table."""
    changes = dict(METHODS[method])
    names = sorted(_problem(problem).terms)
    weight = changes.pop("condition_weight", None)
    if weight is not None:
        changes["weights"] = tuple(1.0 if name == "pde" else weight for name in names)
    if "order" in changes:
        changes["order"] = ",".join(name for name in changes["order"].split(",") if name in names)
    changes["steps"] = int(config.steps * changes.pop("stretch", 1)) // config.looks * config.looks
    sizes = {name: getattr(config, name) for name in _SIZES}
    return SolverSettings(**sizes, **changes)


def rows_of(store: Store) -> list[Row]:
    """Return a row of figures for each problem and method that was tested."""
    rows = []
    for look in (row for row in store.all() if row["stage"] == "look"):
        tests = [r for r in store.of(look["problem"], look["method"]) if r["stage"] == "test"]
        losses = {name: [row["losses"][name] for row in tests] for name in tests[0]["losses"]}
        rows.append(look | {"errors": [row["error"] for row in tests], "losses": losses})
    return rows


def tables(store: Store) -> list[Table]:
    """Return all tables of the study."""
    return tables_of(rows_of(store))


def tables_of(rows: list[Row]) -> list[Table]:
    """Return all tables of rows as `rows_of` returns them."""
    cells = {(row["problem"], row["method"]): row for row in rows}
    builders = (_overall, _predicted, _errors, _pairs, _losses, _conflict)
    return [build(cells) for build in builders]


_Cells = dict[tuple[str, str], Row]


def _problems(cells: _Cells) -> list[str]:
    return list(dict.fromkeys(problem for problem, _ in cells))


def _baseline(cells: _Cells) -> str:
    """Return the clipped sum, or the sum where that is not among the methods."""
    return "sum, clipped" if any(method == "sum, clipped" for _, method in cells) else "sum"


def _over(row: Row, base: Row) -> Interval:
    """Return the logarithm of a method's errors over those of another, paired by seed."""
    return paired_ratio(row["errors"], base["errors"])


def _overall(cells: _Cells) -> Table:
    base, problems = _baseline(cells), _problems(cells)
    title = f"Error over that of “{base}”, with 95 % intervals"
    table = Table(title, ["method", *problems, "geometric mean"])
    for name in dict.fromkeys(method for _, method in cells):
        ratios = [_over(cells[each, name], cells[each, base]) for each in problems]
        mean = np.exp(np.mean([ratio.mean for ratio in ratios]))
        table.add(name, *(ratio.as_ratio() for ratio in ratios), f"{mean:.2f}")
    return table


def _predicted(cells: _Cells) -> Table:
    base = _baseline(cells)
    title = f"What was seen in training on the sum, and who is better or worse than “{base}”"
    header = ["problem", "alignment", "least mean cosine", "norms", "better", "worse"]
    table = Table(title, header)
    for problem in _problems(cells):
        seen = cells[problem, "sum"]
        pairs = np.triu_indices(len(seen["tasks"]), 1)
        figures = f"{seen['alignment']:+.2f}", f"{np.array(seen['cosines'])[pairs].min():+.2f}"
        signs = {
            method: _over(row, cells[problem, base]).sign
            for (on, method), row in cells.items()
            if on == problem
        }
        better, worse = (
            ", ".join(f"`{name}`" for name, sign in signs.items() if sign == side) or "none"
            for side in (-1, 1)
        )
        table.add(problem, *figures, f"{seen['norm_ratio']:.0f} : 1", better, worse)
    return table


def _errors(cells: _Cells) -> Table:
    table = Table("Relative L2 error", ["problem", "method", "rate", "error"], words=2)
    for (problem, method), row in cells.items():
        error = f"{np.exp(np.log(row['errors']).mean()):.3g}"
        table.add(problem, method, f"{row['learning_rate']:g}", error)
    return table


def _pairs(cells: _Cells) -> Table:
    title = "Ratios of two methods, with 95 % intervals"
    table = Table(title, ["problem", "method", "over", "error", *_LOSSES], words=3)
    for problem in _problems(cells):
        for pair in _PAIRS:
            if all((problem, method) in cells for method in pair):
                one, other = (cells[problem, method] for method in pair)
                table.add(problem, *pair, _over(one, other).as_ratio(), *_ratios(one, other))
    return table


def _losses(cells: _Cells) -> Table:
    title = "Losses at the end over the sum's, with 95 % intervals"
    table = Table(title, ["problem", "method", *_LOSSES], words=2)
    for (problem, method), row in cells.items():
        table.add(problem, method, *_ratios(row, cells[problem, "sum"]))
    return table


def _ratios(row: Row, base: Row) -> list[str]:
    """Return ratios of the losses at the end; empty where a problem has no such loss."""
    shown = []
    for name in _LOSSES:
        losses, others = (np.array(each["losses"].get(name, [])) for each in (row, base))
        if not len(losses):
            shown.append("")
        elif losses.all() and others.all():
            shown.append(paired_ratio(losses, others).as_ratio())
        else:
            shown.append("some are 0")
    return shown


def _conflict(cells: _Cells) -> Table:
    title = "Conflict between the losses in training on the sum"
    table = Table(title, ["problem", "losses", "mean cosine", "negative"], words=2)
    for (problem, method), row in cells.items():
        for i, j in zip(*np.triu_indices(len(row["tasks"]), 1), strict=True):
            if method == "sum":
                pair = f"{row['tasks'][i]} and {row['tasks'][j]}"
                cosine, share = row["cosines"][i][j], row["opposed"][i][j]
                table.add(problem, pair, f"{cosine:+.2f}", f"{share:.0%}")
    return table


if __name__ == "__main__":
    report.program("experiments.studies.equations", __doc__, Config, work)
