"""Print the table of methods in README.md, or measure the table of weightings in the documents.

    python -m tests.weightings.table [--measure]

With `--measure`, write weightings.md and weightings.json in experiments/results/benchmark, which
takes half a minute on two CPU cores. The properties come from the catalogue, which the tests in
this folder check; the times are of one compiled call from the Gramian to the weights.
"""

import json
import platform
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lab.timing import time_in_turn
from tests.weightings.catalogue import CATALOGUE, PROPERTIES, Entry

RESULTS = Path(__file__).parents[2] / "experiments" / "results" / "benchmark"
NUM_TASKS = (3, 8, 32)

# Transformations that are no weightings: source, needs, scopes, contents of the state.
ROW_METHODS = {
    "graddrop": ("Chen et al., NeurIPS 2020", "key", "none: each number by itself", "a key"),
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
    """Measure all weightings and write their table."""
    rows = [{"name": name, **measure(entry)} for name, entry in CATALOGUE.items()]
    machine = f"{jax.devices()[0].device_kind}, {platform.machine()}, jax {jax.__version__}"
    RESULTS.mkdir(exist_ok=True)
    result = {"machine": machine, "num_tasks": NUM_TASKS, "weightings": rows}
    (RESULTS / "weightings.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / "weightings.md").write_text(table(rows, machine))


def measure(entry: Entry) -> dict:
    """What the table says of one weighting."""
    return {
        "paper": entry.paper,
        "losses": entry.losses,
        "others": entry.others,
        "state": bool(jax.tree.leaves(entry.make(2).init())),
        "key": entry.key,
        "properties": sorted(entry.properties),
        "microseconds": [seconds_per_call(entry, num_tasks) * 1e6 for num_tasks in NUM_TASKS],
    }


def seconds_per_call(entry: Entry, num_tasks: int) -> float:
    """Time of one compiled call: the least of several means, for the least disturbed."""
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


def table(rows: list[dict], machine: str) -> str:
    """The table in Markdown."""
    head = ["weighting", "source", "needs", *PROPERTIES, *(f"K = {k}" for k in NUM_TASKS)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    for row in rows:
        key = {"no": [], "optional": ["key (optional)"], "required": ["key"]}[row["key"]]
        needs = [need for need in ("losses", "state") if row[need]] + key
        needs += ["a second batch"] if row["others"] else []
        cells = [f"`{row['name']}`", row["paper"], ", ".join(needs) or "—"]
        cells += ["yes" if name in row["properties"] else "" for name in PROPERTIES]
        cells += [f"{microseconds:.0f}" for microseconds in row["microseconds"]]
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
            f"Times: microseconds a compiled call, from the Gramian to the weights; {machine}.",
            "",
            "Methods that are no function of the Gramian alone, as transformations of their own:",
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
