"""Ways to compute the layers of nested nets: which is faster, and where.

The last output of a net nested in width, stripe by stripe and assembled into a plain net; the
convolutions that several streams of a net nested in depth run at the same resolution, one after the
other and as one grouped convolution; and a convolution with its derivatives, in three forms. All
ways are timed in turn, round after round; ratios are medians of the ratios within a round.
"""

import dataclasses
import functools
import itertools
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
from experiments.app.settings import require
from experiments.benchmark import command
from experiments.lab.timing import forward, spread, time_in_turn

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
    output: Path = Path("runs/benchmark_layers.json")

    def __post_init__(self):
        require(self, fields=("channels", "batch_sizes", "outputs", "rounds"), at_least=1)


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
    ways = {name: functools.partial(forward(each, -1), x) for name, each in nets.items()}
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

    def in_sequence(states: list[jax.Array]) -> list[jax.Array]:
        return [_convolve(x, kernel) for x, kernel in zip(states, kernels, strict=True)]

    def grouped(states: jax.Array) -> jax.Array:
        return _convolve(states, jnp.concatenate(kernels, axis=-1), groups=outputs)

    ways = {
        "sequence": functools.partial(jax.jit(in_sequence), states),
        "grouped": functools.partial(jax.jit(grouped), jnp.concatenate(states, axis=-1)),
    }
    return _compare(ways, rounds)


def compare_convolutions(
    spatial: tuple[int, ...], channels: int, batch: int, rounds: int
) -> dict[str, Any]:
    """A 3×3 convolution, its derivatives by input and kernel included, in three forms."""
    x, kernel = _normal((batch, *spatial, channels)), _normal((3,) * len(spatial) + (channels,) * 2)
    channels_first = jnp.moveaxis(x, -1, 1), jnp.moveaxis(kernel, (-1, -2), (0, 1))
    forms = {
        "channels last": (_convolve, (x, kernel)),
        "channels first": (_convolve_channels_first, channels_first),
        "windows": (_product_of_windows, (x, kernel)),
    }

    def with_derivatives(form: Callable[..., jax.Array]) -> Callable[..., Any]:
        def computed(args: tuple[jax.Array, jax.Array]) -> Any:
            y, pull_back = jax.vjp(form, *args)
            return y, pull_back(y)

        return computed

    ways = {
        name: functools.partial(jax.jit(with_derivatives(form)), args)
        for name, (form, args) in forms.items()
    }
    return _compare(ways, rounds)


def _convolve(x: jax.Array, kernel: jax.Array, groups: int = 1) -> jax.Array:
    layouts = ("NHC", "HIO", "NHC") if x.ndim == 3 else ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(
        *(x, kernel, (1,) * (x.ndim - 2), "SAME"),
        dimension_numbers=layouts,
        feature_group_count=groups,
    )


def _convolve_channels_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1,) * (x.ndim - 2), "SAME")


def _product_of_windows(x: jax.Array, kernel: jax.Array) -> jax.Array:
    spatial = x.shape[1:-1]
    padded = jnp.pad(x, [(0, 0), *[(1, 1)] * len(spatial), (0, 0)])
    windows = [
        padded[:, *(slice(t, t + size) for t, size in zip(taps, spatial, strict=True))]
        for taps in itertools.product(range(3), repeat=len(spatial))
    ]
    return jnp.concatenate(windows, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _normal(shape: tuple[int, ...], seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def _compare(ways: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times by way, and ratios of the first way's to each of the others'."""
    seconds = time_in_turn(ways, rounds)
    first, *others = seconds
    return {
        "ms": {name: spread(1e3 * each) for name, each in seconds.items()},
        "ratios": {name: spread(seconds[first] / seconds[name]) for name in others},
    }


def measure(config: Config, report: Callable[[str], None]) -> dict[str, list[dict[str, Any]]]:
    """Rows of figures on stripes, streams and convolutions."""
    rows: dict[str, list[dict[str, Any]]] = {"stripes": [], "streams": [], "convolutions": []}
    for dims, spatial in _SPATIAL.items():
        for channels in config.channels:
            for batch in config.batch_sizes:
                report(f"{dims} axes, {channels} channels, batch {batch}")
                case = (spatial, channels, batch)
                settings = (config.outputs, config.rounds)
                said = {"spatial_dims": dims, "channels": channels, "batch_size": batch}
                rows["stripes"].append(said | compare_stripes(*case, *settings))
                rows["streams"].append(said | compare_streams(*case, *settings))
                compared = compare_convolutions(*case, config.rounds)
                rows["convolutions"].append(said | compared)
    return rows


def tables(results: dict[str, Any]) -> list[Table]:
    """Times of each way, and the first way's over the others'; work is that of the first two."""
    shown = []
    for part, title in (
        ("stripes", "Last output of a net nested in width"),
        ("streams", "Streams of a net nested in depth"),
        ("convolutions", "A convolution and its derivatives"),
    ):
        table = Table(title=title)
        first, *others = results[part][0]["ms"]
        ways = [f"{way} ms" for way in (first, *others)]
        ratios = [f"{first} / {way}" for way in others]
        work = ["work"] if part == "stripes" else []
        for column in ("axes", "channels", "batch", *ways, *ratios, *work):
            table.add_column(column, justify="right", no_wrap=True)
        for row in results[part]:
            table.add_row(
                *(str(row[name]) for name in ("spatial_dims", "channels", "batch_size")),
                *(f"{each['median']:.2f}" for each in row["ms"].values()),
                *map(_median_and_quartiles, row["ratios"].values()),
                *(f"{row[name]:.2f}" for name in work),
            )
        shown.append(table)
    return shown


def _median_and_quartiles(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['quarter']:.2f}–{ratio['three_quarters']:.2f})"


if __name__ == "__main__":
    command.run("experiments.benchmark.layers", __doc__, Config, measure, tables, TITLE)
