"""What a training step costs: SGD on the sum of the losses, OSGD, and OSGD on jax.jacrev's rows.

All methods of a net are timed in turn, round after round, so that a machine that slows down or is
busy for a while does so for all of them. Counted work and memory come from the compiler.
"""

import dataclasses
import datetime
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import osgd_jax
from osgd_jax import nets

FAMILIES = {
    "branched": nets.BranchedResNet,
    "width-nested": nets.WidthNestedResNet,
    "depth-nested": nets.DepthNestedResNet,
    "nested": nets.NestedResNet,
}
METHODS = ("sgd", "osgd", "jacrev")


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      nets: families, each at its default size.
      outputs: numbers of outputs, K.
      batch_sizes: examples in a step.
      image_size: height and width of the images, which have 3 channels.
      precision: dtype of the computation; parameters are float32.
      rounds: how often each step is timed.
      scope: of OSGD.
      output: file for the results.
    """

    nets: tuple[Literal["branched", "width-nested", "depth-nested", "nested"], ...] = (
        "branched",
        "width-nested",
        "depth-nested",
        "nested",
    )
    outputs: tuple[int, ...] = (3,)
    batch_sizes: tuple[int, ...] = (128,)
    image_size: int = 32
    precision: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 10
    scope: Literal["shared", "all", "leaf", "reach"] = "shared"
    output: Path = Path("runs/benchmark.json")

    def __post_init__(self):
        for field in ("outputs", "batch_sizes"):
            if min(getattr(self, field), default=0) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be one or more, each >= 1.")
        for field in ("image_size", "rounds"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1.")


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """Rows of results, one for each net, number of outputs, batch size and method."""
    for family in config.nets:
        for num_outputs in config.outputs:
            for batch_size in config.batch_sizes:
                described = {"net": family, "outputs": num_outputs, "batch_size": batch_size}
                steps = _make_steps(config, family, num_outputs, batch_size)
                for row in _compare_steps(steps, config.rounds):
                    yield described | row


def _make_steps(config: Config, family: str, num_outputs: int, batch_size: int):
    """One compiled training step for each method: `name -> (step, arguments, compile seconds)`."""
    net = FAMILIES[family](
        num_classes=10,
        num_outputs=num_outputs,
        dtype=jnp.dtype(config.precision),
        rngs=nnx.Rngs(0),
    )
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(batch_size, config.image_size, config.image_size, 3))
    batch = jnp.asarray(images, jnp.float32), jnp.asarray(rng.integers(0, 10, batch_size))

    def losses_of(params, rest, inputs, labels):
        net = nnx.merge(graphdef, params, rest, copy=True)
        losses = tuple(
            optax.softmax_cross_entropy_with_integer_labels(each, labels).mean()
            for each in net(inputs)
        )
        return losses, nnx.split(net, nnx.Param, ...)[2]

    def summed(params, *args):
        losses, rest = losses_of(params, *args)
        return sum(losses), rest

    def stacked(params, *args):
        losses, rest = losses_of(params, *args)
        return jnp.stack(losses), rest

    osgd = osgd_jax.osgd(0.1, momentum=0.9, scope=config.scope)
    grad_fns = {
        "sgd": (jax.grad(summed, has_aux=True), optax.sgd(0.1, momentum=0.9)),
        "osgd": (osgd_jax.task_grads(losses_of, has_aux=True), osgd),
        "jacrev": (jax.jacrev(stacked, has_aux=True), osgd),
    }

    def compile_step(grad_fn: Callable, tx: optax.GradientTransformation):
        def step(params, rest, state, batch):
            grads, rest = grad_fn(params, rest, *batch)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), rest, state

        arguments = (params, rest, tx.init(params), batch)
        started = time.perf_counter()
        compiled = jax.jit(step).lower(*arguments).compile()
        return compiled, arguments, time.perf_counter() - started

    return {name: compile_step(*grad_fns[name]) for name in METHODS}


def _compare_steps(steps: dict, rounds: int) -> Iterator[dict[str, Any]]:
    seconds = {name: [] for name in steps}
    for _ in range(rounds + 1):
        for name, (step, arguments, _) in steps.items():
            started = time.perf_counter()
            jax.block_until_ready(step(*arguments))
            seconds[name].append(time.perf_counter() - started)
    base = steps["sgd"][0]
    for name, (step, _, compile_seconds) in steps.items():
        # The first round warms up.
        times, base_times = np.array(seconds[name][1:]), np.array(seconds["sgd"][1:])
        work = step.cost_analysis()["flops"]
        memory = step.memory_analysis().temp_size_in_bytes
        yield {
            "method": name,
            "step_ms": {
                "median": 1e3 * float(np.median(times)),
                "min": 1e3 * float(times.min()),
                "max": 1e3 * float(times.max()),
            },
            "time_over_sgd": float(np.median(times / base_times)),
            "gflop": work / 1e9,
            "work_over_sgd": work / base.cost_analysis()["flops"],
            "temporary_mb": memory / 1e6,
            "memory_over_sgd": memory / base.memory_analysis().temp_size_in_bytes,
            "compile_seconds": compile_seconds,
        }


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table; time, work and memory are over SGD's on the same net."""
    shown = Table(title="A training step over SGD's on the sum of the losses")
    for column in ("net", "K", "batch", "method"):
        shown.add_column(column, no_wrap=True)
    for column in ("ms", "time", "work", "memory"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        shown.add_row(
            *[row["net"], str(row["outputs"]), str(row["batch_size"]), row["method"]],
            f"{row['step_ms']['median']:.0f}",
            *[f"{row[f'{what}_over_sgd']:.2f}" for what in ("time", "work", "memory")],
        )
    return shown


def machine() -> dict[str, Any]:
    """What the figures were measured on and with."""
    return {
        "date": datetime.date.today().isoformat(),
        "device": jax.devices()[0].device_kind,
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
    }


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, prog="python -m experiments.benchmark", description=__doc__)
    console = Console()
    rows = []
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        with console.status("") as status:
            for row in measure(config):
                rows.append(row)
                status.update(f"{row['net']}, K = {row['outputs']}: {row['method']} done")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(table(rows))
    described = dataclasses.asdict(config) | {"output": str(config.output)}
    results = {"config": described, "machine": machine(), "rows": rows}
    config.output.write_text(json.dumps(results, indent=1) + "\n")
    console.print(f"Wrote {config.output}.", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
