"""Nested Transformers on text: `python -m experiments.study.language`.

Every way to train has the same budget: each of a few learning rates is tried on the tuning seeds,
that with the least mean validation loss is taken, and other seeds are tested at it. All take the
same number of steps on the same batches, the gradient clipped to norm 1 before the optimizer. Two
questions: which net, on the sum of the losses before AdamW; and which balance, on the width-nested
net before AdamW and before SGD. What is done already is read from the .jsonl file beside the
output, so that the command goes on where it was stopped.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

import osgd_jax
from experiments import data, methods
from experiments.benchmark import command
from experiments.settings import require
from experiments.tables import interval
from experiments.trainer import Run, Trained, Trainer
from osgd_jax import nets, plots

TITLE = "Nested Transformers on text"
_OUTPUTS = 3
Update = Literal["adamw", "sgd"]
_UPDATES: dict[Update, tuple[float, ...]] = {"adamw": (1e-3, 3e-3, 1e-2), "sgd": (0.1, 0.3, 1.0)}


class MatFormer(nnx.Module):
    """A Transformer whose MLPs are cut to their first units (Devvrit et al. 2023, 2310.07707).

    Each output is a forward pass of its own; attention, embedding and head are whole in all.

    Args:
      fractions: of the units, for each output.
      sizes: of the Transformer.
    """

    def __init__(self, fractions: tuple[float, ...], **sizes: Any):
        self.net = nets.BranchedTransformer(num_outputs=1, **sizes)
        self.fractions = fractions
        self.num_outputs = len(fractions)

    def __call__(self, tokens: jax.Array) -> tuple[jax.Array, ...]:
        """Logits of each output, `[batch, length, vocab_size]`."""
        return tuple(self.cut(fraction)(tokens)[0] for fraction in self.fractions)

    def cut(self, fraction: float) -> nets.BranchedTransformer:
        """The Transformer with so much of its MLPs."""
        graphdef, state = nnx.split(self.net)

        def smaller(path: Any, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path)
            if "mlp" not in name or "kernel" not in name:
                return leaf
            if "out" in name:
                return leaf[: round(fraction * len(leaf))]
            gate, up = jnp.split(leaf, 2, axis=1)
            units = round(fraction * gate.shape[1])
            return jnp.concatenate([gate[:, :units], up[:, :units]], axis=1)

        return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(smaller, state))


class Way(NamedTuple):
    """A way to get K outputs.

    Attributes:
      net: a key of `NETS`.
      optimizer: how the losses are balanced, as for `python -m experiments.train`.
      order: of OSGD.
      update: the optimizer after it.
      output: train this output alone; all if None.
    """

    net: str
    optimizer: str = "sgd"
    order: str = "first_to_last"
    update: Update = "adamw"
    output: int | None = None


# Widths and depths by which the last outputs have about equal multiply-adds.
NETS: Mapping[str, Callable[..., Any]] = MappingProxyType(
    {
        "width": functools.partial(nets.WidthNestedTransformer, width=96, num_heads=6, depth=4),
        "depth": functools.partial(nets.DepthNestedTransformer, width=64, num_heads=4, depth=1),
        "both": functools.partial(nets.NestedTransformer, width=64, num_heads=4, depth=1),
        "branched": functools.partial(
            nets.BranchedTransformer, width=64, num_heads=4, depth=4, num_outputs=_OUTPUTS
        ),
        "matformer": functools.partial(MatFormer, (0.25, 0.5, 1.0), width=64, num_heads=4, depth=4),
    }
)

_BALANCES = {
    "sum": {},
    "osgd, first to last": {"optimizer": "osgd"},
    "osgd, last to first": {"optimizer": "osgd", "order": "last_to_first"},
    "pcd": {"optimizer": "pcd"},
    "aligned_mtl": {"optimizer": "aligned_mtl"},
}

WAYS: Mapping[str, Way] = MappingProxyType(
    {
        **{net: Way(net) for net in NETS},
        **{
            f"{net}, output {k + 1} alone": Way(net, output=k)
            for net in ("width", "branched")
            for k in range(_OUTPUTS)
        },
        **{
            f"width, {balance}, {update}": Way("width", **changes, update=update)
            for update in _UPDATES
            for balance, changes in _BALANCES.items()
            if (balance, update) != ("sum", "adamw")
        },
    }
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare.

    Attributes:
      ways: names of rows of the table.
      data: text, as for `python -m experiments.train`.
      length: tokens of an example.
      batch_size: examples in a step.
      train_size: training examples; each is seen once.
      tuning_seeds: seeds that choose the rate.
      test_seeds: other seeds, that test at it.
      looks: how often the conflict between the outputs' gradients is measured in a test run.
      output: file for the results; pictures are drawn beside it.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    data: str = "pydoc"
    length: int = 64
    batch_size: int = 16
    train_size: int = 4800
    tuning_seeds: int = 2
    test_seeds: int = 5
    looks: int = 10
    output: Path = Path("experiments/results/study/language.json")

    def __post_init__(self):
        counts = ("length", "batch_size", "train_size", "tuning_seeds", "test_seeds", "looks")
        require(self, fields=counts, at_least=1)
        unknown = set(self.ways) - set(WAYS)
        if unknown:
            raise ValueError(f"ways={unknown} are unknown; use some of {'; '.join(WAYS)}.")


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """A row of figures for each way; runs that are there already are read.

    Raises:
      ValueError: no such text, or too little of it.
    """
    dataset = data.load(data.Source(config.data, config.train_size, text_length=config.length))
    key = {name: getattr(config, name) for name in ("data", "length", "batch_size", "train_size")}
    kept = command.Kept(config.output.with_suffix(".jsonl"), key)
    rows = []
    for name in config.ways:
        report(name)
        rows.append({"way": name} | _Compared(config, name, dataset, kept).row())
    drawn = {"about": dataset.about, "rows": rows}
    draw(drawn, config.output.parent)
    return drawn


class _Compared:
    """Tunes and tests one way; compiles when something has to be trained."""

    def __init__(self, config: Config, name: str, dataset: data.Dataset, kept: command.Kept):
        self._config, self._name, self._way = config, name, WAYS[name]
        self._dataset, self._kept = dataset, kept

    def row(self) -> dict[str, Any]:
        """Rate, bits per token of each output and seed, costs."""
        config, rates = self._config, _UPDATES[self._way.update]
        tuning = {
            rate: [self._run(rate, seed)["validation"] for seed in range(config.tuning_seeds)]
            for rate in rates
        }
        best = min(rates, key=lambda rate: np.mean(tuning[rate]))
        tests = [self._run(best, 100 + seed) for seed in range(config.test_seeds)]
        return {
            "learning_rate": best,
            "tuning": {str(rate): found for rate, found in tuning.items()},
            "bits": [run["test"] for run in tests],
            "cosines": np.mean([run["cosines"] for run in tests], axis=0).tolist(),
            "step_ms": 1e3 * float(np.median([run["step_seconds"] for run in tests])),
            "gflop": tests[0]["gflop"],
            **self._costs(),
        }

    def _costs(self) -> dict[str, Any]:
        net, shape = self._make(nnx.Rngs(0)), self._dataset.input_shape
        if isinstance(net, MatFormer):
            costs = [osgd_jax.cost(net.cut(each), shape)[0] for each in net.fractions]
        else:
            costs = osgd_jax.cost(net, shape)
        outputs = range(len(costs)) if self._way.output is None else [self._way.output]
        return {
            "multiply_adds": [costs[k].multiply_adds / shape[0] for k in outputs],
            "parameters": [costs[k].parameters for k in outputs],
        }

    def _run(self, rate: float, seed: int) -> dict[str, Any]:
        key = {"way": self._name, "learning_rate": rate, "seed": seed}
        return self._kept.get(key, lambda: self._train(Run(seed, rate)))

    def _make(self, rngs: nnx.Rngs) -> Any:
        sizes = {} if self._way.net in ("branched", "matformer") else {"num_outputs": _OUTPUTS}
        return NETS[self._way.net](vocab_size=self._dataset.num_classes, rngs=rngs, **sizes)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        way, sizes = self._way, {"epochs": 1, "batch_size": self._config.batch_size}
        settings = methods.Settings(
            way.optimizer, order=way.order, update=way.update, clip_norm=1.0
        )
        method = methods.method(settings, num_tasks=_OUTPUTS)
        method = dataclasses.replace(method, output=way.output)
        return Trainer(self._make, self._dataset, method, **sizes)

    @functools.cached_property
    def _look(self) -> Any:
        def cosines(state: Any, examples: Any) -> jax.Array:
            batch = self._trainer.batch(*examples)
            rows = osgd_jax.task_grads(self._trainer.losses)(state.params, state.rest, batch)
            return osgd_jax.task_cosines(osgd_jax.gramian(rows))

        return jax.jit(cosines)

    def _train(self, run: Run) -> dict[str, Any]:
        trainer, config, tests = self._trainer, self._config, run.seed >= 100
        state, rates = trainer.start([run])
        batches = data.epoch_batches(
            self._dataset.train.size, config.batch_size, np.random.default_rng(run.seed)
        )
        every, cosines, seconds = -(-len(batches) // config.looks), [], []
        looking = tests and self._way.output is None
        losses = jnp.zeros((1, 1))
        for step, batch in enumerate(batches):
            examples = trainer.gather(batch[None, None])
            if looking and step % every == 0:
                one = trainer.alone(state), [each[0, 0] for each in examples]
                cosines.append(self._look(*one).tolist())
            begun = time.perf_counter()
            state, losses = trainer.steps(state, examples, rates)
            jax.block_until_ready(losses)
            seconds.append(time.perf_counter() - begun)
        trained = Trained(state, losses)
        bits = lambda split: (trainer.scores(trained, split)[1][0] / np.log(2)).tolist()  # noqa: E731
        return {
            "validation": bits(self._dataset.validation),
            "test": bits(self._dataset.test) if tests else None,
            "cosines": cosines,
            "step_seconds": float(np.median(seconds)),
            "gflop": trainer.flops() / 1e9,
        }


def bits_table(rows: list[dict[str, Any]]) -> Table:
    """Bits per token of each output."""
    shown = Table(
        title="Test bits per byte of each output, the mean over seeds and its 95 % interval"
    )
    for column in ("way", "rate", "thousand multiply-adds a token", "bits per byte"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for column in ("thousand parameters", "GFLOP a step"):
        shown.add_column(column, justify="right")
    for row in rows:
        bits = np.array(row["bits"]).T
        found = [interval(each) for each in bits]
        shown.add_row(
            row["way"],
            f"{row['learning_rate']:g}",
            " ".join(f"{each / 1e3:.0f}" for each in row["multiply_adds"]),
            ", ".join(f"{each.mean:.3f} ± {each.half_width:.3f}" for each in found),
            f"{row['parameters'][-1] / 1e3:.0f}",
            f"{row['gflop']:.2f}",
        )
    return shown


def balances_table(rows: list[dict[str, Any]]) -> Table:
    """What the balances change on the width-nested net, in pairs of the same seed."""
    shown = Table(title="Bits per byte less those of the sum with the same optimizer, width-nested")
    for column in ("balance", "before", "mean over outputs", *_outputs()):
        shown.add_column(column, justify="left" if column in ("balance", "before") else "right")
    found = {row["way"]: np.array(row["bits"]) for row in rows}
    for update in _UPDATES:
        for balance in _BALANCES:
            sum_of = found.get(_named("sum", update))
            bits = found.get(_named(balance, update))
            if bits is None or sum_of is None or balance == "sum":
                continue
            less = bits - sum_of
            figures = [less.mean(1), *less.T]
            words = [f"{i.mean:+.3f} ± {i.half_width:.3f}" for i in map(interval, figures)]
            shown.add_row(balance, update, *words)
    return shown


def _named(balance: str, update: Update) -> str:
    return "width" if (balance, update) == ("sum", "adamw") else f"width, {balance}, {update}"


def _outputs() -> list[str]:
    return [f"output {k + 1}" for k in range(_OUTPUTS)]


def tables(results: dict[str, Any]) -> list[Table]:
    """Both tables."""
    return [bits_table(results["rows"]), balances_table(results["rows"])]


def draw(results: dict[str, Any], folder: Path) -> None:
    """Draw bits against multiply-adds, and cosines over training, into a folder."""
    from matplotlib.figure import Figure

    rows = {row["way"]: row for row in results["rows"]}
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, row in rows.items():
        means, alone = np.mean(row["bits"], axis=0), "alone" in name
        if name in NETS:
            plots.anytime_curve(row["multiply_adds"], means, label=name, axes=axes)
        elif alone:
            mark, net = {"width": "_", "branched": "+"}, name.partition(",")[0]
            label = f"{net}, each output alone" if "output 1" in name else None
            style = {"color": "0.3", "linestyle": "none", "marker": mark[net], "label": label}
            axes.plot(row["multiply_adds"], means, markersize=12, **style)
    axes.set_xlabel("multiply-adds per byte, up to each output")
    axes.set_ylabel("test bits per byte")
    axes.legend(fontsize="small")
    figure.savefig(folder / "language_bits.png", dpi=110)
    seen = {name: rows[name] for name in NETS if name in rows}
    figure = Figure(figsize=(3.2 * max(1, len(seen)), 3.2), layout="constrained")
    panels = figure.subplots(1, max(1, len(seen)), squeeze=False, sharey=True)[0]
    for axes, (name, row) in zip(panels, seen.items(), strict=False):
        cosines = np.array(row["cosines"])
        plots.cosines(np.linspace(0, 1, len(cosines)), cosines, names=_outputs(), axes=axes)
        axes.set_title(name)
        axes.set_xlabel("share of the steps")
    figure.savefig(folder / "language_cosines.png", dpi=110)


if __name__ == "__main__":
    command.run("experiments.study.language", __doc__, Config, measure, tables, TITLE)
