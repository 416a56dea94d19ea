"""Which method solves which problem best: `python -m experiments.pinn.study`.

Every method has the same budget: each of a few learning rates is tried on the tuning seeds, the one
with the least mean logarithm of the relative L2 error is taken, and other seeds are tested at it.
All take the same number of steps; one loss a step, whose steps take 0.4 of the time, also takes 2.5
times as many. A seed gives the same initial net and the same points to every
method, so that methods are compared in pairs. What is done already is read from the .jsonl file
beside the output, so that the command goes on where it was stopped.

Every step has new points, and the nets see random Fourier features: in trials with the same points
for all steps, and coordinates alone, no method came near a solution in so few steps.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import osgd_jax
from experiments.benchmark import command
from experiments.pinn.problems import PROBLEMS, Name, Sampling
from experiments.pinn.training import Look, Settings, Trainer
from experiments.settings import require
from experiments.tables import Interval, interval

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


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

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
      output: file for the results.
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
    output: Path = Path("runs/pinn/study.json")

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


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row of figures for each problem and method; those that are there already are read."""
    same = {name: getattr(config, name) for name in _SAME}
    kept = command.Kept(config.output.with_suffix(".jsonl"), same)

    def compared(problem: Name, method: str) -> dict[str, Any]:
        report(f"{problem}, {method}")
        return compare(config, problem, method)

    return {
        "rows": [
            kept.get(
                {"problem": problem, "method": method},
                functools.partial(compared, problem, method),
            )
            for problem in config.problems
            for method in config.methods
        ]
    }


_SIZES = ("width", "layers", "frequencies", "points", "edge_points", "sampling")
# Fields that every row depends on.
_SAME = ("rates", "tuning_seeds", "steps", "looks", *_SIZES)


def compare(config: Config, problem: Name, method: str) -> dict[str, Any]:
    """Tune a method on a problem, and test it."""
    trainer = Trainer(PROBLEMS[problem], settings(config, problem, method))
    train = functools.partial(_train, config, trainer, _compiled(config, trainer))
    seeds, rates = jnp.arange(config.tuning_seeds), jnp.array(config.rates)
    begun = time.perf_counter()
    seen = train(jnp.tile(seeds, len(rates)), jnp.repeat(rates, len(seeds)))
    tuning = seen.error[-1].reshape(len(rates), -1)
    best = config.rates[int(np.log(tuning).mean(axis=1).argmin())]
    tests = jnp.arange(len(seeds) * len(rates)) + 1000
    seen = train(tests, jnp.full(len(tests), best))
    gramians = seen.gramian.reshape(-1, *seen.gramian.shape[2:])
    found = osgd_jax.diagnose(gramians, dict.fromkeys(trainer.names, 0.0))
    return {
        "learning_rate": best,
        "tuning": tuning.tolist(),
        "errors": seen.error[-1].tolist(),
        "losses": {name: each[-1].tolist() for name, each in seen.losses.items()},
        "tasks": list(found.tasks),
        "cosines": found.cosines.tolist(),
        "opposed": found.opposed.tolist(),
        "norm_ratio": found.norm_ratio,
        "alignment": found.alignment,
        "seconds": time.perf_counter() - begun,
    }


def settings(config: Config, problem: Name, method: str) -> Settings:
    """Of a run by a method of the table."""
    changes = dict(METHODS[method])
    names = sorted(PROBLEMS[problem].terms)
    weight = changes.pop("condition_weight", None)
    if weight is not None:
        changes["weights"] = tuple(1.0 if name == "pde" else weight for name in names)
    if "order" in changes:
        changes["order"] = ",".join(name for name in changes["order"].split(",") if name in names)
    changes["steps"] = int(config.steps * changes.pop("stretch", 1)) // config.looks * config.looks
    sizes = {name: getattr(config, name) for name in _SIZES}
    return Settings(**sizes, **changes)


def _compiled(config: Config, trainer: Trainer) -> tuple[Any, Any, Any]:
    """Start, a part of the steps, and a look, of many nets."""
    advance = functools.partial(trainer.advance, count=trainer.settings.steps // config.looks)
    return (
        jax.jit(jax.vmap(trainer.start)),
        jax.jit(jax.vmap(advance, in_axes=(0, 0, None)), donate_argnums=0),
        jax.jit(jax.vmap(trainer.look)),
    )


def _train(
    config: Config, trainer: Trainer, programs: Any, seeds: jax.Array, rates: jax.Array
) -> Look:
    """What is seen at each look, `[looks, nets, ...]`."""
    start, advance, look = programs
    state = start(seeds, rates)
    looks = []
    for part in range(config.looks):
        state = advance(state, rates, part * (trainer.settings.steps // config.looks))
        looks.append(jax.device_get(look(state)))
    seen = jax.tree.map(lambda *each: np.stack(each), *looks)
    return seen._replace(error=np.where(np.isfinite(seen.error), seen.error, _DIVERGED))


def errors_table(rows: list[dict[str, Any]]) -> Table:
    """Errors of the methods at their rates."""
    shown = _table("Relative L2 error", "method", "rate", "error")
    for row in rows:
        error = f"{np.exp(np.log(row['errors']).mean()):.3g}"
        shown.add_row(row["problem"], row["method"], f"{row['learning_rate']:g}", error)
    return shown


def overall_table(rows: list[dict[str, Any]]) -> Table:
    """Each method's errors over the baseline's in pairs of one seed, and the mean over problems."""
    found = {(row["problem"], row["method"]): row for row in rows}
    problems, names = (list(dict.fromkeys(pair)) for pair in zip(*found, strict=True))
    base = _baseline(rows)
    shown = Table(title=f"Error over that of “{base}”, with 95 % intervals")
    for column in ("method", *problems, "geometric mean"):
        shown.add_column(column, justify="left" if column == "method" else "right")
    for name in names:
        ratios = [_over(found[each, name], found[each, base]) for each in problems]
        mean = np.exp(np.mean([ratio.mean for ratio in ratios]))
        shown.add_row(name, *map(_shown, ratios), f"{mean:.2f}")
    return shown


# Methods to be held against each other: those without a weight to tune against the best fixed one,
# two orders, and PCD's promise of progress to the other losses against promises to do them no harm
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


def pairs_table(rows: list[dict[str, Any]]) -> Table:
    """Errors and losses of one method over those of another."""
    shown = _table(
        "Ratios of two methods, with 95 % intervals", "method", "over", "error", *_LOSSES
    )
    found = {(row["problem"], row["method"]): row for row in rows}
    for problem in dict.fromkeys(row["problem"] for row in rows):
        for pair in _PAIRS:
            if all((problem, method) in found for method in pair):
                one, other = [found[problem, method] for method in pair]
                shown.add_row(problem, *pair, _shown(_over(one, other)), *_losses_over(one, other))
    return shown


def conflict_table(rows: list[dict[str, Any]]) -> Table:
    """What `osgd_jax.diagnose` says of training on the sum."""
    title = "Conflict between the losses in training on the sum"
    shown = _table(title, "losses", "mean cosine", "negative")
    for row in rows:
        for i, j in zip(*np.triu_indices(len(row["tasks"]), 1), strict=True):
            pair = f"{row['tasks'][i]} and {row['tasks'][j]}"
            cosine, share = row["cosines"][i][j], row["opposed"][i][j]
            if row["method"] == "sum":
                shown.add_row(row["problem"], pair, f"{cosine:+.2f}", f"{share:.0%}")
    return shown


def predicted_table(rows: list[dict[str, Any]]) -> Table:
    """The diagnosis of each problem, and whose errors are then beyond the baseline's."""
    base = _baseline(rows)
    title = f"What was seen in training on the sum, and who is better or worse than “{base}”"
    shown = _table(title, "alignment", "least mean cosine", "norms", "better", "worse")
    for problem in dict.fromkeys(row["problem"] for row in rows):
        found = {row["method"]: row for row in rows if row["problem"] == problem}
        seen = found["sum"]
        pairs = np.triu_indices(len(seen["tasks"]), 1)
        figures = f"{seen['alignment']:+.2f}", f"{np.array(seen['cosines'])[pairs].min():+.2f}"
        ratios = {name: _over(row, found[base]) for name, row in found.items()}
        better = [name for name, ratio in ratios.items() if ratio.mean + ratio.half_width < 0]
        worse = [name for name, ratio in ratios.items() if ratio.mean - ratio.half_width > 0]
        named = [", ".join(f"`{name}`" for name in each) or "none" for each in (better, worse)]
        shown.add_row(problem, *figures, f"{seen['norm_ratio']:.0f} : 1", *named)
    return shown


def losses_table(rows: list[dict[str, Any]]) -> Table:
    """What each method makes of each loss, over what the sum makes of it."""
    shown = _table("Losses at the end over the sum's, with 95 % intervals", "method", *_LOSSES)
    bases = {row["problem"]: row for row in rows if row["method"] == "sum"}
    for row in rows:
        shown.add_row(row["problem"], row["method"], *_losses_over(row, bases[row["problem"]]))
    return shown


_LOSSES = ("bc", "ic", "pde")


def _losses_over(row: dict[str, Any], base: dict[str, Any]) -> list[str]:
    """Ratios of the losses at the end; empty where a problem has no such loss."""
    cells = []
    for name in _LOSSES:
        losses, others = (np.array(each["losses"].get(name, [])) for each in (row, base))
        if not len(losses):
            cells.append("")
        elif losses.all() and others.all():
            cells.append(_shown(interval(np.log(losses) - np.log(others))))
        else:
            cells.append("some are 0")
    return cells


def _table(title: str, *columns: str) -> Table:
    """An empty table of problems, in which words are at the left and figures at the right."""
    shown = Table(title=title)
    words = ("problem", "method", "over", "losses", "better", "worse")
    for column in ("problem", *columns):
        shown.add_column(column, justify="left" if column in words else "right")
    return shown


def _baseline(rows: list[dict[str, Any]]) -> str:
    """The clipped sum, or the sum where that is not among the methods."""
    return "sum, clipped" if any(row["method"] == "sum, clipped" for row in rows) else "sum"


def _over(row: dict[str, Any], base: dict[str, Any]) -> Interval:
    """The logarithm of a method's errors over those of another, paired by seed."""
    return interval(np.log(row["errors"]) - np.log(base["errors"]))


def _shown(logarithm: Interval) -> str:
    """A ratio and its interval."""
    mean, low, high = np.exp(logarithm.mean + logarithm.half_width * np.array([0, -1, 1]))
    return f"{mean:.2g} ({low:.2g} to {high:.2g})"


def tables(results: dict[str, Any]) -> list[Table]:
    """All tables."""
    made = (overall_table, predicted_table, errors_table, pairs_table, losses_table, conflict_table)
    return [table(results["rows"]) for table in made]


if __name__ == "__main__":
    command.run("experiments.pinn.study", __doc__, Config, measure, tables, TITLE)
