"""Print the table of methods in README.md, or measure the table of weightings in the documents.

    python -m tests.weightings.table [--measure]

With `--measure`, write experiments/results/benchmark/weightings.json, which takes half a minute on
two CPU cores; the site has its table. The properties come from the catalogue, which the tests in
this folder check; the times are of one compiled call from the Gramian to the weights.
"""

import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.app.files import read_json, write_json
from experiments.lab.timing import time_in_turn
from tests.weightings.catalogue import CATALOGUE, PROPERTIES, Entry

STORED = Path(__file__).parents[2] / "experiments" / "results" / "benchmark" / "weightings.json"
NUM_TASKS = (3, 8, 32)

# Transformations that are no weightings: source, needs, scopes, contents of the state.
ROW_METHODS = {
    "graddrop": ("Chen et al., NeurIPS 2020", "key", "none: each number separately", "a key"),
    "moco": ("Fernando et al., ICLR 2023", "—", "shared, all", "K copies of the parameters"),
    "db_mtl": ("Lin et al., arXiv 2308.12029", "losses", "shared, all", "K copies"),
    "excess_mtl": ("He et al., ICML 2024", "—", "shared, all", "K copies"),
}


# What the table in README.md shows of each method, by its properties; the first that fits.
_GUARANTEES = {
    "no loss increases; the step is zero at Pareto-stationary points": {"non-conflicting", "stops"},
    "no loss increases; the direction ignores loss scales": {"non-conflicting", "row scale"},
    "no loss increases": {"non-conflicting"},
    "the direction ignores loss scales": {"row scale"},
    "none": set(),
}


def main() -> None:
    if "--measure" in sys.argv:
        write()
    else:
        print(methods(), end="")


def methods() -> str:
    """Return the table of methods for README.md, one row for each guarantee."""
    rows: dict[str, tuple[list[str], list[str]]] = {text: ([], []) for text in _GUARANTEES}
    for name, entry in CATALOGUE.items():
        if name not in ("orthogonal", "sum", "mean", "constant", "random"):
            guarantee = next(text for text, has in _GUARANTEES.items() if has <= entry.properties)
            paper = f"{entry.paper}; two batches" if entry.others else entry.paper
            rows[guarantee][entry.losses].append(f"`{name}` ({paper})")
    for name, (paper, needs, *_) in ROW_METHODS.items():
        rows["none"][needs == "losses"].append(f"`osgd_jax.{name}` ({paper})")
    rows["none"][0].append("`osgd_jax.m_config` (Liu et al., ICLR 2025; one loss per step)")
    lines = [
        "| guarantee, to first order on the batch | methods that need gradients | … and losses |",
        "| --- | --- | --- |",
        "| the step for a loss leaves earlier losses unchanged | `orthogonalize`, `osgd`"
        f" ({CATALOGUE['orthogonal'].paper}) | |",
        *(f"| {text} | {', '.join(a)} | {', '.join(b)} |" for text, (a, b) in rows.items()),
    ]
    return "\n".join(lines) + "\n"


def write() -> None:
    """Time all weightings and store the results."""
    machine = f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"
    times = {
        name: [seconds_per_call(entry, k) * 1e6 for k in NUM_TASKS]
        for name, entry in CATALOGUE.items()
    }
    write_json(STORED, {"machine": machine, "num_tasks": NUM_TASKS, "microseconds": times})


def seconds_per_call(entry: Entry, num_tasks: int) -> float:
    """Return the time of one compiled call: the least of several means, the least disturbed."""
    weighting = entry.make(num_tasks)
    rows = np.random.default_rng(0).normal(size=(num_tasks, 2 * num_tasks))
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    losses = jnp.ones(num_tasks) if entry.losses else None
    key = None if entry.key == "no" else jax.random.key(0)
    weigh = jax.jit(lambda gramian, state: weighting.weigh(gramian, state, losses=losses, key=key))
    state = weighting.init()

    def calls():
        for _ in range(20):
            jax.block_until_ready(weigh(gramian, state))

    return time_in_turn({"": calls}, rounds=25)[""].min() / 20


def table() -> str:
    """Return the catalogue with the stored times in Markdown; "–" stands for a missing time."""
    stored = read_json(STORED, "machine", "num_tasks", "microseconds")
    num_tasks = stored["num_tasks"]
    head = ["weighting", "source", "needs", *PROPERTIES, *(f"K = {k}" for k in num_tasks)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for name, entry in CATALOGUE.items():
        needs = ["losses"] if entry.losses else []
        needs += ["state"] if jax.tree.leaves(entry.make(2).init()) else []
        needs += {"no": [], "optional": ["key (optional)"], "required": ["key"]}[entry.key]
        needs += ["a second batch"] if entry.others else []
        cells = [f"`{name}`", entry.paper, ", ".join(needs) or "—"]
        cells += ["yes" if claim in entry.properties else "" for claim in PROPERTIES]
        times = stored["microseconds"].get(name)
        cells += [f"{each:.0f}" for each in times] if times else ["–"] * len(num_tasks)
        lines.append("| " + " | ".join(cells) + " |")
    meanings = [f"- *{name}*: {meaning}." for name, meaning in PROPERTIES.items()]
    return "\n".join(
        [
            *lines,
            "",
            "The properties, which hold by test (a blank is no claim; g_i are the gradients, d the"
            " direction):",
            "",
            *meanings,
            "",
            "Times: microseconds a compiled call, from the Gramian to the weights;"
            f" {stored['machine']}.",
            "",
            "Methods that are no function of the Gramian alone, as separate transformations:",
            "",
            "| method | source | needs | scopes | state |",
            "| --- | --- | --- | --- | --- |",
            *(
                "| " + " | ".join([f"`osgd_jax.{name}`", *cells]) + " |"
                for name, cells in ROW_METHODS.items()
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
