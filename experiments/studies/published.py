"""ConFIG's example of Burgers' equation, with ten seeds: `python -m experiments.studies.published`.

The set-up of docs/examples/pinn_burgers.ipynb of tum-pbs/ConFIG: 5,000 steps of Adam at a constant
rate of 1e-4, of M-ConFIG at 5e-4, five layers of 50 with tanh on coordinates as they are, initial
biases of 0.001, new points of a Latin hypercube for each step; all of it with uniform points, too.
The published figures are of one seed, each the least test error over all steps; ours are given at
the last step, too.

Runs that the output holds already are not trained again.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.app.settings import require
from experiments.lab import report
from experiments.lab.report import Table
from experiments.lab.statistics import paired_ratio
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Question, Run, Sweep
from experiments.pinn.problems import PROBLEMS, Sampling
from experiments.pinn.training import Net, Solver, SolverSettings

TITLE = "ConFIG's example of Burgers' equation"

# Learning rate, and the published mean squared error, in units of 1e-3.
_PUBLISHED = {"sum": (1e-4, 31.0), "config": (1e-4, 6.4), "m_config": (5e-4, 1.9)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the run.

    Attributes:
      seeds: how many.
      steps: of each.
      looks: how often in a run the error is measured.
      width: of the net's layers.
      points: for the equation.
      output: file of the rows.
    """

    seeds: int = 10
    steps: int = 5000
    looks: int = 50
    width: int = 50
    points: int = 2000
    output: Path = Path("runs/published.jsonl.gz")

    def __post_init__(self):
        require(self, fields=("seeds", "steps", "looks", "width", "points"), at_least=1)
        if self.steps % self.looks:
            raise ValueError(f"steps={self.steps} must be a multiple of looks={self.looks}.")


class _Theirs(Solver):
    def _net(self, seed: Any) -> Net:
        net = super()._net(seed)
        # The net scales what lies between these to [-1, 1].
        net.low, net.high = (-1.0, -1.0), (1.0, 1.0)
        for layer in net.layers:
            bias: Any = layer.bias
            bias[...] = jnp.full(bias.shape, 1e-3)
        return net

    def _optimizer(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.with_extra_args_support(self.method.optimizer(rate))


def work(config: Config, advance: Callable[[str], None]) -> list[Table]:
    """Train what the output lacks and return the table; each method has one rate, none is tuned."""
    same = {name: getattr(config, name) for name in ("steps", "looks", "width", "points")}
    store = Store(config.output, same, report.about("experiments.studies.published"))
    runs = Sweep(
        store,
        rates=lambda method: _PUBLISHED[method][:1],
        score=lambda row: -row["errors"][-1],
        outcome=lambda row: np.log(row["errors"][-1]),
    )
    asked = "Is the published example reproduced, and do its points matter?"
    methods = tuple(_PUBLISHED)
    question = Question(asked, get_args(Sampling), methods, range(0), range(config.seeds))
    compiled = functools.cache(functools.partial(_trained, config))

    def train(sampling: Any, method: str, stage: str, wanted: list[Run]) -> Iterator[list[Row]]:
        for run in wanted:
            key = {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
            yield [key | {"errors": compiled(sampling, method)(run)}]

    runs.answer(question, train, advance)
    return tables(store)


def _trained(config: Config, sampling: Sampling, method: str) -> Callable[[Run], list[float]]:
    """Return what trains a run and gives its mean squared errors at the looks, in units of 1e-3."""
    settings = SolverSettings(
        method=method,
        steps=config.steps,
        width=config.width,
        layers=5,
        points=config.points,
        sampling=sampling,
    )
    trainer = _Theirs(PROBLEMS["burgers"], settings)
    count = config.steps // config.looks
    start = jax.jit(trainer.start)
    advance = jax.jit(functools.partial(trainer.advance, count=count), donate_argnums=0)
    look = jax.jit(lambda state: trainer.look(state).error)
    scale = 1e3 * float(np.mean(np.square(trainer.solution)))

    def errors(run: Run) -> list[float]:
        state, found = start(run.seed, run.learning_rate), []
        for part in range(config.looks):
            state = advance(state, run.learning_rate, part * count)
            found.append(scale * float(look(state)) ** 2)
        return found

    return errors


def tables(store: Store) -> list[Table]:
    """Return geometric means over the seeds, beside the published figures."""
    header = ["points", "method", "published", "best look", "last step", "least", "largest"]
    over = "last step over the sum's, with its 95 % interval"
    table = Table("Mean squared error of the test, in units of 0.001", [*header, over], words=2)
    for sampling in get_args(Sampling):
        errors = {
            method: np.array([row["errors"] for row in store.of(sampling, method)])
            for method in _PUBLISHED
        }
        for method, each in errors.items():
            last = each[:, -1]
            means = np.exp([np.log(each.min(axis=1)).mean(), np.log(last).mean()])
            known = _PUBLISHED[method][1] if sampling == "latin_hypercube" else None
            figures = [known, *means, last.min(), last.max()]
            shown = ["–" if figure is None else f"{figure:.3g}" for figure in figures]
            ratio = paired_ratio(last, errors["sum"][:, -1]).as_ratio(".2f")
            table.add(sampling.replace("_", " "), method, *shown, ratio)
    return [table]


if __name__ == "__main__":
    report.program("experiments.studies.published", __doc__, Config, work)
