"""Tables and pictures of the study of language models."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from experiments.study.language.ways import BALANCES, NETS, OUTPUTS, UPDATES, named
from experiments.tables import interval
from osgd_jax import plots


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


def ngrams_table(bits: list[float]) -> Table:
    """Bits per byte of models that count."""
    shown = Table(title="Test bits per byte of n-grams of the same training text")
    for n in range(1, len(bits) + 1):
        shown.add_column(f"{n}-gram", justify="right")
    shown.add_row(*[f"{each:.3f}" for each in bits])
    return shown


def alone_table(rows: list[dict[str, Any]]) -> Table:
    """What an output loses by being one of several, in pairs of the same seed."""
    shown = Table(title="Bits per byte less those of a net trained alone of equal multiply-adds")
    for column in ("net", "output", "less"):
        shown.add_column(column, justify="left" if column == "net" else "right")
    shown.add_column("difference", justify="right")
    alone = [row for row in rows if row["way"].endswith("alone")]
    for row in rows:
        if row["way"] in NETS:
            bits, costs = np.array(row["bits"]), row["multiply_adds"]
            for k, other in itertools.product(range(OUTPUTS), alone):
                if np.isclose(costs[k], other["multiply_adds"][0], rtol=0.03):
                    less = interval(bits[:, k] - np.array(other["bits"])[:, 0])
                    figures = f"{less.mean:+.3f} ± {less.half_width:.3f}"
                    shown.add_row(row["way"], str(k + 1), other["way"], figures)
    return shown


def balances_table(rows: list[dict[str, Any]]) -> Table:
    """What the balances change on the width-nested net, in pairs of the same seed."""
    shown = Table(title="Bits per byte less those of the sum with the same optimizer, width-nested")
    for column in ("balance", "before", "mean over outputs", *_outputs()):
        shown.add_column(column, justify="left" if column in ("balance", "before") else "right")
    found = {row["way"]: np.array(row["bits"]) for row in rows}
    for update in UPDATES:
        for balance in BALANCES:
            sum_of = found.get(named("sum", update))
            bits = found.get(named(balance, update))
            if bits is None or sum_of is None or balance == "sum":
                continue
            less = bits - sum_of
            figures = [less.mean(1), *less.T]
            words = [f"{i.mean:+.3f} ± {i.half_width:.3f}" for i in map(interval, figures)]
            shown.add_row(balance, update, *words)
    return shown


def conflict_table(rows: list[dict[str, Any]]) -> Table:
    """What `osgd_jax.diagnose` says of training on the sum."""
    shown = Table(title="Conflict between the outputs' gradients in training on the sum")
    for column in ("way", "alignment", "least mean cosine", "most often negative"):
        shown.add_column(column, justify="left" if column == "way" else "right")
    for row in rows:
        if row["way"] in (*NETS, named("sum", "sgd")):
            figures = f"{row['alignment']:+.2f}", f"{row['least_cosine']:+.2f}"
            shown.add_row(row["way"], *figures, f"{row['opposed']:.0%}")
    return shown


def _outputs() -> list[str]:
    return [f"output {k + 1}" for k in range(OUTPUTS)]


def tables(results: dict[str, Any]) -> list[Table]:
    """Bits of nets, what nets alone and balances change, conflict, and bits of n-grams."""
    made = (bits_table, alone_table, balances_table, conflict_table)
    return [*(table(results["rows"]) for table in made), ngrams_table(results["ngrams"])]


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
    ticks = 25 * 2 ** np.arange(5)
    axes.set_xticks(1e3 * ticks, [f"{tick} k" for tick in ticks])
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
        if axes is not panels[0]:
            axes.set_ylabel("")
            axes.get_legend().remove()
    figure.savefig(folder / "language_cosines.png", dpi=110)
