"""What a training step costs: SGD on the sum of the losses, OSGD, and OSGD on jax.jacrev's rows.

All methods of a net are timed in turn, round after round, so that a machine that slows down or is
busy for a while does so for all of them. Counted work and memory come from the compiler. Each
figure stands beside its limit (`steps.py`). With `--peer PYTHON`, an
interpreter that has numpy, torch and torchjd[quadprog_projector], TorchJD takes the same steps
(`torchjd/compare.py`).
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx
from rich.table import Table

import osgd_jax
from experiments.app.methods import Scope
from experiments.app.nets import NETS, ResNetFamily
from experiments.app.settings import require
from experiments.benchmark import aggregation, command, steps
from experiments.benchmark.torchjd import compare as torchjd

TITLE = "Benchmark of training steps"
Method = Literal["sgd", "osgd", "jacrev", "upgrad", "micro-batches"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      nets: families, each at its default size, or with `blocks`.
      outputs: numbers of outputs, K.
      batch_sizes: examples in a step.
      methods: ways to take a step; "micro-batches" adds up task gradients in four parts.
      image_size: height and width of the images, which have 3 channels.
      blocks: residual blocks of each of the three levels; those of the family if None. A branched
        net has at most one output for each.
      precision: dtype of the computation; parameters are float32.
      rounds: how often each step is timed.
      scope: of OSGD.
      parameters: of the Jacobian whose aggregation is timed alone; 0 for none.
      peer: Python interpreter that has numpy, torch and torchjd[quadprog_projector], to compare
        with TorchJD.
      output: file for the results.
    """

    nets: tuple[ResNetFamily, ...] = get_args(ResNetFamily)
    outputs: tuple[int, ...] = (3,)
    batch_sizes: tuple[int, ...] = (128,)
    methods: tuple[Method, ...] = ("sgd", "osgd", "jacrev")
    image_size: int = 32
    blocks: tuple[int, int, int] | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    rounds: int = 10
    scope: Scope = "all"
    parameters: int = 16_000_000
    peer: Path | None = None
    output: Path = Path("runs/benchmark.json")

    def __post_init__(self):
        require(self, fields=("outputs", "batch_sizes", "image_size", "rounds"), at_least=1)
        require(self, fields=("blocks",), at_least=1)
        require(self, fields=("parameters",), at_least=0)
        if "sgd" not in self.methods:
            raise ValueError(
                f"methods={self.methods} must contain sgd, which all are held against."
            )
        parts = steps.MICRO_BATCHES
        if "micro-batches" in self.methods and any(size % parts for size in self.batch_sizes):
            raise ValueError(f"batch_sizes={self.batch_sizes} must be multiples of {parts}.")


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """All figures, as they are written to the file.

    Raises:
      ValueError: sizes that do not fit each other, or a peer that cannot be run.
    """
    if config.peer:
        torchjd.check(config.peer)
    rows = []
    for family in config.nets:
        for num_outputs in config.outputs:
            for batch_size in config.batch_sizes:
                described = {"net": family, "outputs": num_outputs, "batch_size": batch_size}
                report(f"{family}, K = {num_outputs}, batch {batch_size}")
                net = make_net(config, family, num_outputs)
                shape = (batch_size, config.image_size, config.image_size, 3)
                problem = steps.problem(net, shape)
                compared = steps.compare(problem, config.methods, config.scope, config.rounds)
                rows += [described | row for row in compared]
    results: dict[str, Any] = {"rows": rows}
    if config.parameters:
        report("aggregation alone")
        results["aggregation"] = [
            aggregation.measure(num_outputs, config.parameters, 3 * config.rounds)
            for num_outputs in config.outputs
        ]
    if config.peer:
        results["peer"] = []
        for batch_size in config.batch_sizes:
            report(f"TorchJD, batch {batch_size}")
            net = make_net(config, "branched", config.outputs[0])
            shape = (batch_size, config.image_size, config.image_size, 3)
            problem = steps.problem(net, shape)
            results["peer"].append(torchjd.measure(problem, config.peer, config.rounds))
    return results


def make_net(config: Config, family: str, num_outputs: int) -> osgd_jax.nets.AnytimeNet:
    """A net of a family."""
    sizes = {} if config.blocks is None else {"blocks": config.blocks}
    return NETS[family](
        num_classes=10,
        num_outputs=num_outputs,
        dtype=jnp.dtype(config.precision),
        rngs=nnx.Rngs(0),
        **sizes,
    )


def steps_table(rows: list[dict[str, Any]]) -> Table:
    """Time, work and memory over SGD's on the same net; their limits, and how far off they are."""
    shown = Table(title="A training step over SGD's on the sum of the losses, and its limits")
    for column in ("net", "K", "batch", "method"):
        shown.add_column(column, no_wrap=True)
    columns = ("ms", "±", "time", "work", "limit", "time/limit", "MB", "mem/limit", "compile s")
    for column in columns:
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        ms = row["step_ms"]
        shown.add_row(
            *[row["net"], str(row["outputs"]), str(row["batch_size"]), row["method"]],
            *[f"{ms['median']:.0f}", f"{(ms['three_quarters'] - ms['quarter']) / 2:.0f}"],
            f"{row['time_over_sgd']['median']:.2f}",
            *[f"{row[key]:.2f}" for key in ("work_over_sgd", "work_limit_over_sgd")],
            f"{row['time_over_limit']:.2f}",
            f"{row['temporary_mb']:.0f}",
            f"{row['memory_over_limit']:.2f}",
            f"{row['compile_seconds']:.1f}",
        )
    return shown


def aggregation_table(rows: list[dict[str, Any]]) -> Table:
    """Times over what the memory's bandwidth allows."""
    shown = Table(title="Aggregation alone, over the limit by memory bandwidth")
    for column in ("K", "parameters", "GB/s", "Gramian ms", "over limit", "all ms", "over limit"):
        shown.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        figures = [
            f"{row[part][figure]['median']:.2f}"
            for part in ("gramian", "aggregate")
            for figure in ("ms", "over_limit")
        ]
        bandwidth = f"{row['bandwidth_gb_per_s']['median']:.1f}"
        shown.add_row(str(row["outputs"]), f"{row['parameters']:,}", bandwidth, *figures)
    return shown


def tables(results: dict[str, Any]) -> list[Table]:
    """All that there are figures for."""
    shown = [steps_table(results["rows"])]
    if "aggregation" in results:
        shown.append(aggregation_table(results["aggregation"]))
    if "peer" in results:
        shown.append(torchjd.table(results["peer"]))
    return shown


if __name__ == "__main__":
    command.run("experiments.benchmark", __doc__, Config, measure, tables, TITLE)
