"""Tables and pictures of the study of language models."""

import itertools
from pathlib import Path

import numpy as np

from experiments.lab.report import Table
from experiments.lab.statistics import interval, paired
from experiments.lab.store import Row, Store
from experiments.lab.sweep import Sweep
from experiments.studies.language.ways import BALANCES, NETS, OUTPUTS, UPDATES, WAYS, named
from osgd_jax import plots

TITLE = "Nested Transformers on text"
_OUTPUTS = [f"output {k + 1}" for k in range(OUTPUTS)]


def sweep(store: Store) -> Sweep:
    """Return the rows with this study's grids and scores, which are bits per byte."""
    return Sweep(
        store,
        lambda way: UPDATES[WAYS[way].update],
        lambda row: -float(np.mean(row["validation"])),
        lambda row: np.array(row["test"]),
    )


def rows_of(store: Store) -> list[Row]:
    """Return a row of figures for each way that was tested."""
    runs, text = sweep(store), store.about["settings"]["data"]
    looks = [row for row in store.all() if row["stage"] == "look"]

    def bits(look: Row) -> list[list[float]]:
        rows = runs.at(text, look["method"], "test", look["learning_rate"], range(100, 1000))
        return [row["test"] for row in rows]

    return [{"way": look["method"], "bits": bits(look)} | look for look in looks]


def bits_table(rows: list[Row]) -> Table:
    """Return bits per byte of each output."""
    title = "Test bits per byte of each output, the mean over seeds and its 95 % interval"
    header = ["way", "rate", "thousand multiply-adds a token", "bits per byte"]
    table = Table(title, [*header, "thousand parameters", "GFLOP a step"])
    for row in rows:
        table.add(
            row["way"],
            f"{row['learning_rate']:g}",
            " ".join(f"{each / 1e3:.0f}" for each in row["multiply_adds"]),
            ", ".join(f"{interval(each):.3f}" for each in np.array(row["bits"]).T),
            f"{row['parameters'][-1] / 1e3:.0f}",
            f"{row['gflop']:.2f}",
        )
    return table


def ngrams_table(bits: list[float]) -> Table:
    """Return bits per byte of models that count."""
    title = "Test bits per byte of n-grams of the same training text"
    header = [f"{n}-gram" for n in range(1, len(bits) + 1)]
    return Table(title, header, [[f"{each:.3f}" for each in bits]], words=0)


def alone_table(rows: list[Row]) -> Table:
    """Return the loss of an output by being one of several, in pairs of the same seed."""
    title = "Bits per byte less those of a net trained alone of equal multiply-adds"
    table = Table(title, ["net", "output", "less", "difference"])
    alone = [row for row in rows if row["way"].endswith("alone")]
    for row in rows:
        if row["way"] in NETS:
            bits, costs = np.array(row["bits"]), row["multiply_adds"]
            for k, other in itertools.product(range(OUTPUTS), alone):
                if np.isclose(costs[k], other["multiply_adds"][0], rtol=0.03):
                    less = paired(bits[:, k], np.array(other["bits"])[:, 0])
                    table.add(row["way"], k + 1, other["way"], f"{less:+.3f}")
    return table


def balances_table(rows: list[Row]) -> Table:
    """Return the effect of the balances on the width-nested net, in pairs of the same seed."""
    title = "Bits per byte less those of the sum with the same optimizer, width-nested"
    table = Table(title, ["balance", "before", "mean over outputs", *_OUTPUTS], words=2)
    found = {row["way"]: np.array(row["bits"]) for row in rows}
    for update, balance in itertools.product(UPDATES, BALANCES):
        base, bits = found.get(named("sum", update)), found.get(named(balance, update))
        if bits is not None and base is not None and balance != "sum":
            less = bits - base
            figures = [f"{interval(each):+.3f}" for each in (less.mean(1), *less.T)]
            table.add(balance, update, *figures)
    return table


def conflict_table(rows: list[Row]) -> Table:
    """Return the diagnosis of training on the sum."""
    title = "Conflict between the outputs' gradients in training on the sum"
    table = Table(title, ["way", "alignment", "least mean cosine", "most often negative"])
    for row in rows:
        if row["way"] in (*NETS, named("sum", "sgd")):
            figures = f"{row['alignment']:+.2f}", f"{row['least_cosine']:+.2f}"
            table.add(row["way"], *figures, f"{row['opposed']:.0%}")
    return table


def tables(store: Store) -> list[Table]:
    """Return all tables of the study."""
    rows = rows_of(store)
    (counted,) = store.of(store.about["settings"]["data"], "n-grams")
    builders = (bits_table, alone_table, balances_table, conflict_table)
    return [*(build(rows) for build in builders), ngrams_table(counted["bits"])]


def draw(store: Store, folder: Path) -> None:
    """Draw bits against multiply-adds, and cosines over training, into a folder."""
    from matplotlib.figure import Figure

    rows = {row["way"]: row for row in rows_of(store)}
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
        plots.cosines(np.linspace(0, 1, len(cosines)), cosines, names=_OUTPUTS, axes=axes)
        axes.set_title(name)
        axes.set_xlabel("share of the steps")
        if axes is not panels[0]:
            axes.set_ylabel("")
            axes.get_legend().remove()
    figure.savefig(folder / "language_cosines.png", dpi=110)
