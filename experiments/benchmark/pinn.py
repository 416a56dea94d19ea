"""Time balanced training steps of a physics-informed net over a step on the sum.

Each step is Adam's after: the gradient of the sum of the losses; their task gradients and a
weighting; or `jax.jacrev` and the same weighting. A call takes a number of steps in `lax.scan`, as
training does. All calls of a problem are timed in turn, round after round. The compiler counts
their work, and in a step of m_config that of all losses, though one is taken.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp

from experiments.app.settings import require
from experiments.lab.report import Table
from experiments.lab.timing import operations, spread, time_in_turn
from experiments.pinn.problems import PROBLEMS, Name
from experiments.pinn.training import Solver, SolverSettings

TITLE = "Benchmark of physics-informed nets"


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the cases to measure.

    Attributes:
      problems: each with its own losses.
      methods: as for `python -m experiments.pinn`.
      jacrev: method that is timed on the rows of jax.jacrev, too.
      width: of the net's layers.
      layers: hidden layers.
      points: for the equation.
      edge_points: for each of the conditions.
      steps: in a call.
      rounds: how often each call is timed.
      output: file for the results.
    """

    problems: tuple[Name, ...] = get_args(Name)
    methods: tuple[str, ...] = ("osgd", "config", "upgrad", "pcd", "inverse_norms", "m_config")
    jacrev: str = "upgrad"
    width: int = 50
    layers: int = 4
    points: int = 1000
    edge_points: int = 50
    steps: int = 20
    rounds: int = 10
    output: Path = Path("runs/benchmark_pinn.jsonl")

    def __post_init__(self):
        counts = ("width", "layers", "points", "edge_points", "steps", "rounds")
        require(self, fields=counts, at_least=1)


class _ByJacrev(Solver):
    """Trains on the rows of `jax.jacrev`, one pull-back for all losses stacked."""

    def task_gradients(self, losses_of: Callable, params: Any):
        """Losses and their gradients with a leading axis of tasks."""
        both = jax.jacrev(lambda params: 2 * (losses_of(params),), has_aux=True)
        rows, losses = both(params)
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *[rows[name] for name in self.names])
        return losses, stacked


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row of figures for each problem and method."""
    rows = []
    for name in config.problems:
        report(name)
        rows += [{"problem": name} | row for row in _timed(config, name)]
    return {"rows": rows}


def _timed(config: Config, name: Name) -> list[dict[str, Any]]:
    """Return a row of figures for each method, timed in turn."""
    sizes = ("steps", "width", "layers", "points", "edge_points")
    common = {size: getattr(config, size) for size in sizes}
    ways = {method: (Solver, method) for method in ("sum", *config.methods)}
    ways["jacrev, " + config.jacrev] = (_ByJacrev, config.jacrev)
    calls, work = {}, {}
    for way, (trainer_type, method) in ways.items():
        trainer = trainer_type(PROBLEMS[name], SolverSettings(method, resample=False, **common))
        state = jax.jit(trainer.start)(0, 1e-3)
        advance = functools.partial(trainer.advance, count=config.steps)
        compiled = jax.jit(advance).lower(state, 1e-3, 0).compile()
        calls[way] = functools.partial(compiled, state, 1e-3, 0)
        work[way] = operations(compiled)
    seconds = time_in_turn(calls, config.rounds)
    return [
        {
            "method": way,
            "step_ms": spread(1e3 * each / config.steps),
            "time_over_sum": spread(each / seconds["sum"]),
            "work_over_sum": work[way] / work["sum"],
        }
        for way, each in seconds.items()
    ]


def tables(results: dict[str, Any]) -> list[Table]:
    """One row for each problem and method."""
    shown = Table(
        "A training step over that with the gradient of the sum",
        ["problem", "method", "ms", "±", "time", "work"],
        words=2,
    )
    for row in results["rows"]:
        ms = row["step_ms"]
        figures = (
            ms["median"],
            (ms["three_quarters"] - ms["quarter"]) / 2,
            row["time_over_sum"]["median"],
            row["work_over_sum"],
        )
        shown.add(row["problem"], row["method"], *[f"{each:.2f}" for each in figures])
    return [shown]
