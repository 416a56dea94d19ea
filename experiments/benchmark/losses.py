"""What many losses cost: losses of one array, losses in a tuple, and weights of 64 tasks.

Losses of one array are those of a small net, one for each example, beside `jax.jacrev` and `vmap`
of `jax.grad`. Losses in a tuple are heads on a shared trunk, beside the gradient of their sum.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from experiments.app.settings import require
from experiments.lab.report import Table
from experiments.lab.timing import compile_anew, spread, time_in_turn

TITLE = "Many losses"
_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      examples: numbers of losses of one array.
      heads: numbers of losses in a tuple.
      tasks: of the weightings.
      weightings: that take no arguments.
      rounds: how often everything is timed.
      output: file for the results.
    """

    examples: tuple[int, ...] = (16, 32, 64, 128, 256)
    heads: tuple[int, ...] = (10, 25, 50)
    tasks: int = 64
    weightings: tuple[str, ...] = ("orthogonal", "upgrad")
    rounds: int = 20
    output: Path = Path("runs/benchmark_losses.jsonl")

    def __post_init__(self):
        require(self, fields=("examples", "heads", "tasks", "rounds"), at_least=1)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are written to the file."""
    results: dict[str, Any] = {"examples": [], "heads": [], "weightings": []}
    # A first round for what is compiled once in a process.
    _compare(*of_examples(2), rounds=1)
    for count in config.examples:
        report(f"{count} losses of one array")
        rows = _compare(*of_examples(count), config.rounds)
        results["examples"] += [{"losses": count} | row for row in rows]
    for count in config.heads:
        report(f"{count} losses in a tuple")
        rows = _compare(*of_heads(count), config.rounds)
        results["heads"] += [{"losses": count} | row for row in rows]
    rows = np.random.default_rng(0).normal(size=(config.tasks, 2 * config.tasks))
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    weigh = {name: _weights_by(name) for name in config.weightings}
    for row in _compare(weigh, (gramian,), config.rounds):
        results["weightings"].append({"losses": config.tasks} | row)
    return results


def _compare(ways: dict[str, Callable], args: tuple, rounds: int) -> list[dict[str, Any]]:
    """Processor seconds to compile, and milliseconds of a call, of all ways in turn."""
    compile_seconds, calls = {}, {}
    for name, way in ways.items():
        compiled, compile_seconds[name] = compile_anew(way, *args)
        calls[name] = lambda compiled=compiled: compiled(*args)
    seconds = time_in_turn(calls, rounds)
    return [
        {
            "way": name,
            "compile_seconds": compile_seconds[name],
            "ms": spread(1e3 * seconds[name]),
            "least_ms": 1e3 * float(seconds[name].min()),
        }
        for name in ways
    ]


def of_examples(count: int) -> tuple[dict[str, Callable], tuple]:
    """Make functions of the same gradients, one for each example, and their arguments."""
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (_WIDTH, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH, 1)
    params = [jax.random.normal(k, shape) / 8 for k, shape in zip(keys, shapes, strict=False)]
    inputs = jax.random.normal(keys[3], (count, _WIDTH))

    def losses(params: Any, inputs: jax.Array):
        hidden = jnp.tanh(jnp.tanh(inputs @ params[0]) @ params[1])
        return jnp.square(hidden @ params[2] - 1)[:, 0]

    def loss(params: Any, example: jax.Array):
        return losses(params, example[None])[0]

    def dense(params: Any, inputs: jax.Array):
        return osgd_jax.densify(osgd_jax.task_grads(losses)(params, inputs))

    ways = {
        "task_grads": dense,
        "jax.jacrev": jax.jacrev(losses),
        "vmap of jax.grad": jax.vmap(jax.grad(loss), in_axes=(None, 0)),
    }
    return ways, (params, inputs)


def of_heads(count: int) -> tuple[dict[str, Callable], tuple]:
    """Make the gradients of each head's loss and of their sum, and their arguments."""
    params = {
        "trunk": [jnp.eye(_WIDTH)] * 3,
        "heads": [jnp.full((_WIDTH, 1), 1 / (k + 1)) for k in range(count)],
    }

    def losses(params: Any, inputs: jax.Array):
        hidden = inputs
        for kernel in params["trunk"]:
            hidden = jnp.tanh(hidden @ kernel)
        return tuple(jnp.mean(jnp.square(hidden @ head)) for head in params["heads"])

    def summed(params: Any, inputs: jax.Array):
        return sum(losses(params, inputs))

    ways = {"task_grads": osgd_jax.task_grads(losses), "the sum's gradient": jax.grad(summed)}
    return ways, (params, jnp.ones((128, _WIDTH)))


def _weights_by(name: str) -> Callable[[jax.Array], jax.Array]:
    weighting = getattr(osgd_jax.weightings, name)()
    return lambda gramian: weighting.weigh(gramian, weighting.init())[0]


def tables(results: dict[str, Any]) -> list[Table]:
    """One for each kind of losses."""
    titles = {
        "examples": "Losses of one array, one for each example",
        "heads": "Losses in a tuple, heads on a trunk",
        "weightings": "Weights of many tasks",
    }
    shown = []
    for part, title in titles.items():
        columns = ["losses", "way", "processor seconds to compile", "ms", "least ms"]
        table = Table(title, columns, words=2)
        for row in results[part]:
            figures = (row["compile_seconds"], row["ms"]["median"], row["least_ms"])
            table.add(row["losses"], row["way"], *[f"{each:.2f}" for each in figures])
        shown.append(table)
    return shown
