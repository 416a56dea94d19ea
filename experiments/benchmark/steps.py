"""Time a training step: SGD on the sum of the losses, OSGD, and OSGD on jax.jacrev's rows.

All methods of a net are timed in turn, round after round, so that a machine that slows down or is
busy for a while does so for all of them. Counted work and memory come from the compiler. Each
figure stands beside its limit (`training_steps.py`). With `--peer`, the same steps are timed in
PyTorch and TorchJD (`peer.py`).
"""

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax.numpy as jnp
from flax import nnx

from experiments.app.methods import Scope
from experiments.app.nets import NETS, ResNetFamily
from experiments.app.settings import require
from experiments.benchmark import aggregation, training_steps
from experiments.lab.report import Table

TITLE = "Benchmark of training steps"
Method = Literal["sgd", "osgd", "jacrev", "upgrad", "micro-batches"]


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose what to measure.

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
      peer: compare with PyTorch and TorchJD, which `pip install -e '.[experiments,peer]'` adds.
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
    peer: bool = False
    output: Path = Path("runs/benchmark_steps.jsonl")

    def __post_init__(self):
        require(self, fields=("outputs", "batch_sizes", "image_size", "rounds"), at_least=1)
        require(self, fields=("blocks",), at_least=1)
        require(self, fields=("parameters",), at_least=0)
        if "sgd" not in self.methods:
            raise ValueError(f"`methods` must contain sgd, the baseline, got {self.methods}.")
        parts = training_steps.MICRO_BATCHES
        if "micro-batches" in self.methods and any(size % parts for size in self.batch_sizes):
            raise ValueError(f"`batch_sizes` must be multiples of {parts}, got {self.batch_sizes}.")


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Return all figures, as they are written to the file.

    Raises:
      ValueError: sizes that do not fit each other, or a peer that is not installed or whose
        gradients differ.
    """
    if config.peer and importlib.util.find_spec("torchjd") is None:
        raise ValueError(
            "`peer` must be left out in an environment without torch and torchjd; install them by"
            " `pip install -e '.[experiments,peer]'`."
        )
    rows = []
    for family in config.nets:
        for num_outputs in config.outputs:
            for batch_size in config.batch_sizes:
                described = {"net": family, "outputs": num_outputs, "batch_size": batch_size}
                report(f"{family}, K = {num_outputs}, batch {batch_size}")
                problem = _problem(config, family, num_outputs, batch_size)
                compared = training_steps.compare(
                    problem, config.methods, config.scope, config.rounds
                )
                rows += [described | row for row in compared]
    results: dict[str, Any] = {"rows": rows}
    if config.parameters:
        report("aggregation alone")
        results["aggregation"] = [
            aggregation.against_bandwidth(num_outputs, config.parameters, 3 * config.rounds)
            for num_outputs in config.outputs
        ]
    if config.peer:
        from experiments.benchmark import peer  # which imports torch

        results["peer"] = []
        for batch_size in config.batch_sizes:
            report(f"PyTorch and TorchJD, batch {batch_size}")
            problem = _problem(config, "branched", config.outputs[0], batch_size)
            results["peer"].append(peer.against_torchjd(problem, config.rounds))
    return results


def _problem(
    config: Config, family: str, num_outputs: int, batch_size: int
) -> training_steps.Problem:
    sizes = {} if config.blocks is None else {"blocks": config.blocks}
    net = NETS[family](
        num_classes=10,
        num_outputs=num_outputs,
        dtype=jnp.dtype(config.precision),
        rngs=nnx.Rngs(0),
        **sizes,
    )
    shape = (batch_size, config.image_size, config.image_size, 3)
    return training_steps.classification(net, shape)


def tables(results: dict[str, Any]) -> list[Table]:
    """Return a table of each kind of figures in the results."""
    shown = [_steps_table(results["rows"])]
    if "aggregation" in results:
        shown.append(_aggregation_table(results["aggregation"]))
    if "peer" in results:
        shown.append(_peer_table(results["peer"]))
    return shown


def _steps_table(rows: list[dict[str, Any]]) -> Table:
    """Return time, work and memory over SGD's on the same net, and over their limits."""
    shown = Table(
        "A training step over SGD's on the sum of the losses, and its limits",
        [
            *("net", "K", "batch", "method", "ms", "±", "time", "work", "limit"),
            *("time/limit", "MB", "mem/limit", "compile s"),
        ],
        words=4,
    )
    for row in rows:
        ms = row["step_ms"]
        shown.add(
            *[row["net"], row["outputs"], row["batch_size"], row["method"]],
            *[f"{ms['median']:.0f}", f"{(ms['three_quarters'] - ms['quarter']) / 2:.0f}"],
            f"{row['time_over_sgd']['median']:.2f}",
            *[f"{row[key]:.2f}" for key in ("work_over_sgd", "work_limit_over_sgd")],
            f"{row['time_over_limit']:.2f}",
            f"{row['temporary_mb']:.0f}",
            f"{row['memory_over_limit']:.2f}",
            f"{row['compile_seconds']:.1f}",
        )
    return shown


def _aggregation_table(rows: list[dict[str, Any]]) -> Table:
    """Return times over the times that the bandwidth of the memory allows."""
    shown = Table(
        "Aggregation alone, over the limit by memory bandwidth",
        ["K", "parameters", "GB/s", "Gramian ms", "over limit", "all ms", "over limit"],
        words=0,
    )
    for row in rows:
        figures = [
            f"{row[part][figure]['median']:.2f}"
            for part in ("gramian", "aggregate")
            for figure in ("ms", "over_limit")
        ]
        bandwidth = f"{row['bandwidth_gb_per_s']['median']:.1f}"
        shown.add(row["outputs"], f"{row['parameters']:,}", bandwidth, *figures)
    return shown


def _peer_table(results: list[dict[str, Any]]) -> Table:
    """Return times of both libraries, each over its own SGD."""
    shown = Table(
        "osgd_jax and TorchJD on the same branched net, each over its own SGD",
        ["batch", "library", "step", "ms", "time", "overhead"],
        words=3,
    )
    for result in results:
        for library in ("osgd_jax", "torchjd"):
            for row in result[library]:
                time = row["time_over_sgd"]["median"]
                ms = f"{row['step_ms']['median']:.1f}"
                described = (result["batch_size"], library, row["step"])
                shown.add(*described, ms, f"{time:.2f}", f"{100 * (time - 1):.0f} %")
        share = f"{result['overhead_over_torchjd']:.2f}"
        shown.add("", "", "least overhead over TorchJD's least", "", "", share)
    return shown
