"""Ways to compute the layers of nested nets: which is faster, and where.

The last output of a net nested in width, stripe by stripe and assembled into a plain net; and the
convolutions that several streams of a net nested in depth run at the same resolution, one after the
other and as one grouped convolution. All ways are timed in turn, round after round; ratios are
medians of the ratios within a round.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from rich.table import Table

import osgd_jax
from experiments import benchmark_report
from experiments.benchmark_steps import spread, time_in_turn

TITLE = "Benchmark of the layers of nested nets"

# An example of each number of spatial axes: a sequence as in MNIST-1D, an image as in CIFAR-10.
_SPATIAL = {1: (40,), 2: (32, 32)}
_CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure.

    Attributes:
      channels: of the first level; the second and third have twice and four times as many.
      batch_sizes: examples that are run at a time.
      outputs: number of outputs, K.
      rounds: how often everything is timed.
      output: file for the results.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    batch_sizes: tuple[int, ...] = (1, 32, 128)
    outputs: int = 3
    rounds: int = 20
    output: Path = Path("experiments/results/layers.json")

    def __post_init__(self):
        for field in ("channels", "batch_sizes", "outputs", "rounds"):
            value = getattr(self, field)
            if min(value if isinstance(value, tuple) else (value,), default=0) < 1:
                raise ValueError(f"{field}={value} must be at least 1.")


def compare_stripes(
    spatial: tuple[int, ...], channels: int, batch: int, outputs: int, rounds: int
) -> dict[str, Any]:
    """The last output of a net nested in width: stripe by stripe, and assembled."""
    net = osgd_jax.nets.WidthNestedResNet(
        num_classes=_CLASSES,
        num_outputs=outputs,
        spatial_dims=len(spatial),
        widths=(channels, 2 * channels, 4 * channels),
        rngs=nnx.Rngs(0),
    )
    nets = {"striped": net, "assembled": net.assembled()}
    x = _normal((batch, *spatial, net.in_channels))
    ways = {name: _compile(_last_logits(each), x) for name, each in nets.items()}
    work = [osgd_jax.cost(each, x.shape[1:])[-1].multiply_adds for each in nets.values()]
    return {"work": work[0] / work[1]} | _compare(ways, rounds)


def compare_streams(
    spatial: tuple[int, ...], channels: int, batch: int, outputs: int, rounds: int
) -> dict[str, Any]:
    """A 3×3 convolution for each stream: one after the other, and as groups of one.

    The states of the streams are given side by side for the groups, as if that were free.
    """
    kernels = [_normal((3,) * len(spatial) + (channels, channels), k) for k in range(outputs)]
    states = [_normal((batch, *spatial, channels), k) for k in range(outputs)]
    layouts = ("NHC", "HIO", "NHC") if len(spatial) == 1 else ("NHWC", "HWIO", "NHWC")

    def convolve(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
        return lax.conv_general_dilated(
            *(x, kernel, (1,) * len(spatial), "SAME"),
            dimension_numbers=layouts,
            feature_group_count=groups,
        )

    def in_sequence(states: list[jax.Array]) -> list[jax.Array]:
        return [convolve(x, kernel) for x, kernel in zip(states, kernels, strict=True)]

    def grouped(states: jax.Array) -> jax.Array:
        return convolve(states, jnp.concatenate(kernels, axis=-1), outputs)

    ways = {
        "sequence": _compile(in_sequence, states),
        "grouped": _compile(grouped, jnp.concatenate(states, axis=-1)),
    }
    return _compare(ways, rounds)


def _normal(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _last_logits(net: Any) -> Any:
    graphdef, state = nnx.split(nnx.view(net, use_running_average=True))
    return lambda x: nnx.merge(graphdef, state, copy=True)(x)[-1]


def _compile(function: Any, x: Any) -> Any:
    compiled = jax.jit(function)
    return lambda: compiled(x)


def _compare(ways: dict[str, Any], rounds: int) -> dict[str, Any]:
    seconds = time_in_turn(ways, rounds)
    first, second = seconds.values()
    times = {f"{name}_ms": spread(1e3 * each) for name, each in seconds.items()}
    return times | {"ratio": spread(first / second)}


def measure(config: Config, report: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Rows of figures on stripes and on streams."""
    rows: dict[str, list[dict[str, Any]]] = {"stripes": [], "streams": []}
    for dims, spatial in _SPATIAL.items():
        for channels in config.channels:
            for batch in config.batch_sizes:
                report(f"{dims} axes, {channels} channels, batch {batch}")
                case = (spatial, channels, batch, config.outputs, config.rounds)
                said = {"spatial_dims": dims, "channels": channels, "batch_size": batch}
                rows["stripes"].append(said | compare_stripes(*case))
                rows["streams"].append(said | compare_streams(*case))
    return rows


def tables(results: dict[str, Any]) -> list[Table]:
    """Times of each way and their ratios; work is that of the stripes over the assembled net's."""
    shown = []
    for part, ways, title in (
        ("stripes", ("striped", "assembled"), "Last output: striped over assembled"),
        ("streams", ("sequence", "grouped"), "Streams: in sequence over grouped"),
    ):
        table = Table(title=title)
        work = ("work",) if part == "stripes" else ()
        for column in ("axes", "channels", "batch", *(f"{way} ms" for way in ways), "time", *work):
            table.add_column(column, justify="right", no_wrap=True)
        for row in results[part]:
            ratio = row["ratio"]
            table.add_row(
                *(str(row[name]) for name in ("spatial_dims", "channels", "batch_size")),
                *(f"{row[f'{way}_ms']['median']:.2f}" for way in ways),
                f"{ratio['median']:.2f} ({ratio['quarter']:.2f}–{ratio['three_quarters']:.2f})",
                *(f"{row[name]:.2f}" for name in work),
            )
        shown.append(table)
    return shown


if __name__ == "__main__":
    benchmark_report.run("experiments.benchmark_layers", __doc__, Config, measure, tables, TITLE)
