"""ConFIG's example of Burgers' equation, with ten seeds: `python -m experiments.pinn.published`.

The set-up of docs/examples/pinn_burgers.ipynb of tum-pbs/ConFIG: 5,000 steps of Adam at a constant
rate of 1e-4, of M-ConFIG at 5e-4, five layers of 50 with tanh on coordinates as they are, initial
biases of 0.001, new points of a Latin hypercube for each step; all of it with uniform points, too.
The published figures are of one seed, each the least test error over all steps; ours are given at
the last step, too.

Runs that are in the .jsonl file beside the output are read, not trained again.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

from experiments.benchmark import command
from experiments.pinn.problems import PROBLEMS, Sampling
from experiments.pinn.training import Net, Settings, Trainer
from experiments.settings import require
from experiments.tables import interval

TITLE = "ConFIG's example of Burgers' equation"

# Learning rate, and the published mean squared error, in units of 1e-3.
_PUBLISHED = {"sum": (1e-4, 31.0), "config": (1e-4, 6.4), "m_config": (5e-4, 1.9)}


@dataclasses.dataclass(frozen=True)
class Config:
    """How much of it to run.

    Attributes:
      seeds: how many.
      steps: of each.
      looks: how often in a run the error is measured.
      width: of the net's layers.
      points: for the equation.
      output: file for the results.
    """

    seeds: int = 10
    steps: int = 5000
    looks: int = 50
    width: int = 50
    points: int = 2000
    output: Path = Path("runs/pinn/published.json")

    def __post_init__(self):
        require(self, fields=("seeds", "steps", "looks", "width", "points"), at_least=1)
        if self.steps % self.looks:
            raise ValueError(f"steps={self.steps} must be a multiple of looks={self.looks}.")


class _Theirs(Trainer):
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


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row for each method and seed."""
    same = {name: getattr(config, name) for name in ("steps", "looks", "width", "points")}
    kept = command.Kept(config.output.with_suffix(".jsonl"), same)

    def trained(sampling: Sampling, seed: int, method: str) -> dict[str, Any]:
        report(f"{sampling}, {method}, seed {seed}")
        return {"errors": _trained(config, sampling, method)(seed)}

    cases = list(itertools.product(get_args(Sampling), range(config.seeds), _PUBLISHED))
    return {
        "rows": [
            kept.get(
                {"sampling": sampling, "method": method, "seed": seed},
                functools.partial(trained, sampling, seed, method),
            )
            for sampling, seed, method in cases
        ]
    }


@functools.cache
def _trained(config: Config, sampling: Sampling, method: str) -> Callable[[int], list[float]]:
    """From a seed to the mean squared errors at the looks, in units of 1e-3."""
    settings = Settings(
        method=method,
        steps=config.steps,
        width=config.width,
        layers=5,
        points=config.points,
        sampling=sampling,
    )
    trainer = _Theirs(PROBLEMS["burgers"], settings)
    (rate, _), count = _PUBLISHED[method], config.steps // config.looks
    start = jax.jit(trainer.start)
    advance = jax.jit(functools.partial(trainer.advance, count=count), donate_argnums=0)
    look = jax.jit(lambda state: trainer.look(state).error)
    scale = 1e3 * float(np.mean(np.square(trainer.solution)))

    def errors(seed: int) -> list[float]:
        state, found = start(seed, rate), []
        for part in range(config.looks):
            state = advance(state, rate, part * count)
            found.append(scale * float(look(state)) ** 2)
        return found

    return errors


def tables(results: dict[str, Any]) -> list[Table]:
    """Geometric means over the seeds, beside the published figures."""
    shown = Table(title="Mean squared error of the test, in units of 0.001")
    for column in ("points", "method"):
        shown.add_column(column)
    for column in ("published", "best look", "last step", "least", "largest"):
        shown.add_column(column, justify="right")
    shown.add_column("last step over the sum's, with its 95 % interval", justify="right")
    errors: dict[tuple[str, str], list[list[float]]] = {}
    for row in results["rows"]:
        errors.setdefault((row["sampling"], row["method"]), []).append(row["errors"])
    for (sampling, method), of_seeds in errors.items():
        found = np.array(of_seeds)
        last = found[:, -1]
        over = interval(np.log(last / np.array(errors[sampling, "sum"])[:, -1]))
        low, high = over.mean - over.half_width, over.mean + over.half_width
        means = np.exp([np.log(found.min(axis=1)).mean(), np.log(last).mean()])
        published = _PUBLISHED[method][1] if sampling == "latin_hypercube" else None
        figures = [published, *means, last.min(), last.max()]
        shown.add_row(
            sampling.replace("_", " "),
            method,
            *["–" if each is None else f"{each:.3g}" for each in figures],
            f"{np.exp(over.mean):.2f} ({np.exp(low):.2f} to {np.exp(high):.2f})",
        )
    return [shown]


if __name__ == "__main__":
    command.run("experiments.pinn.published", __doc__, Config, measure, tables, TITLE)
