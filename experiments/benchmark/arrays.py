"""Time updates of many parameter arrays, when compiled, and the Gramian.

Compile times are held against those of `optax.clip_by_global_norm` and SGD with momentum for the
same arrays: half kernels, half biases, in shapes that repeat as they do in a net, every other
kernel reached by the last two losses only. The Gramian's time is held against that of summing the
rows, which reads them once.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import osgd_jax
from experiments.app.settings import require
from experiments.lab.report import Table
from experiments.lab.timing import compile_anew, time_in_turn

TITLE = "Many arrays"


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the cases to measure.

    Attributes:
      arrays: numbers of parameter arrays.
      methods: "orthogonalize", or weightings that take no arguments.
      num_tasks: K, for the compile times.
      gramian_tasks: numbers K, for the Gramian.
      gramian_parameters: sizes P, for the Gramian, in 4 arrays.
      rounds: how often everything is timed.
      output: file for the results.
    """

    arrays: tuple[int, ...] = (50, 200, 1000)
    methods: tuple[str, ...] = ("orthogonalize", "mean", "pcgrad", "upgrad", "cagrad")
    num_tasks: int = 3
    gramian_tasks: tuple[int, ...] = (3, 8)
    gramian_parameters: tuple[int, ...] = (1_000_000, 10_000_000)
    rounds: int = 3
    output: Path = Path("runs/benchmark_arrays.jsonl")

    def __post_init__(self):
        require(self, fields=("arrays", "num_tasks", "rounds"), at_least=1)


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are written to the file."""
    rows = []
    for number in config.arrays:
        report(f"{number} arrays")
        rows += compile_times(number, config.num_tasks, config.methods, config.rounds)
    gramians = []
    for num_tasks in config.gramian_tasks:
        for num_parameters in config.gramian_parameters:
            report(f"Gramian, K = {num_tasks}, {num_parameters:,} parameters")
            gramians.append(gramian_time(num_tasks, num_parameters, 10 * config.rounds))
    return {"compile": rows, "gramian": gramians}


def compile_times(
    number: int, num_tasks: int, methods: tuple[str, ...], rounds: int
) -> list[dict[str, Any]]:
    """Processor seconds to trace and compile, all methods in turn, over those of clipped SGD."""
    params, grads = arrays(number, num_tasks)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    updates = {"clipped SGD": (clipped, params)}
    for method in methods:
        updates[method] = (_transformation(method), grads)
    # A first round, of fewer arrays, for what is compiled once in a process.
    few = arrays(2, num_tasks)
    for tx, given in updates.values():
        _compile_seconds(tx, few[0] if given is params else few[1], few[0])
    seconds = {name: [] for name in updates}
    for _ in range(rounds):
        for name, (tx, given) in updates.items():
            seconds[name].append(_compile_seconds(tx, given, params))
    shortest = {name: min(each) for name, each in seconds.items()}
    return [
        {
            "arrays": number,
            "method": name,
            "seconds": each,
            "over_sgd": each / shortest["clipped SGD"],
        }
        for name, each in shortest.items()
    ]


def arrays(number: int, num_tasks: int) -> tuple[list, list]:
    """Shapes of parameters and of their task gradients."""
    params, grads = [], []
    for i in range(number):
        width = 64 * (1 + i // 2 % 4)
        shape = (width, 128) if i % 2 == 0 else (width,)
        tasks = tuple(range(num_tasks))[-2 if i % 4 == 0 else 0 :]
        params.append(jax.ShapeDtypeStruct(shape, jnp.float32))
        rows: Any = jax.ShapeDtypeStruct((len(tasks), *shape), jnp.float32)
        grads.append(osgd_jax.TaskRows(rows, tasks, num_tasks))
    return params, grads


def _transformation(method: str) -> optax.GradientTransformationExtraArgs:
    if method == "orthogonalize":
        return osgd_jax.orthogonalize()
    return osgd_jax.aggregate(getattr(osgd_jax.weightings, method)())


def _compile_seconds(tx: Any, grads: Any, params: Any) -> float:
    return compile_anew(tx.update, grads, jax.eval_shape(tx.init, params), params)[1]


def gramian_time(num_tasks: int, num_parameters: int, rounds: int) -> dict[str, Any]:
    """Time the Gramian of given rows, in turn with their sums."""
    keys = jax.random.split(jax.random.key(0), 4)
    rows = [jax.random.normal(key, (num_tasks, num_parameters // 4)) for key in keys]
    gramian = jax.jit(osgd_jax.gramian)
    sums = jax.jit(lambda rows: [jnp.sum(each, axis=1) for each in rows])
    calls = {"sums": lambda: sums(rows), "gramian": lambda: gramian(rows)}
    # The least, which a busy machine changes least.
    least = {name: float(each.min()) for name, each in time_in_turn(calls, rounds).items()}
    return {
        "outputs": num_tasks,
        "parameters": num_parameters,
        "gramian_ms": 1e3 * least["gramian"],
        "over_sums": least["gramian"] / least["sums"],
    }


def tables(results: dict[str, Any]) -> list[Table]:
    """Compile times, and times of the Gramian."""
    compiled = Table(
        "Compiling an update, over clipping and SGD with momentum",
        ["arrays", "method", "processor seconds", "over clipped SGD"],
        words=2,
    )
    for row in results["compile"]:
        figures = [f"{row['seconds']:.2f}", f"{row['over_sgd']:.2f}"]
        compiled.add(row["arrays"], row["method"], *figures)
    gramians = Table(
        "The Gramian, over reading the rows once", ["K", "parameters", "ms", "over sums"], words=0
    )
    for row in results["gramian"]:
        figures = [f"{row[key]:.2f}" for key in ("gramian_ms", "over_sums")]
        gramians.add(row["outputs"], f"{row['parameters']:,}", *figures)
    return [compiled, gramians]
