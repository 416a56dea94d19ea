"""The tables of STUDY.md: methods on one problem, and methods on many."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.study.candidates import CANDIDATES
from experiments.study.problems import Problem
from experiments.study.runs import FIRST, TWO
from experiments.study.statistics import best_tuned, ceilings, interval, paired, result
from experiments.study.store import Store

BY_TWO_SEEDS = "Rates chosen with two seeds:"


def results(store: Store, problem: Problem, names: Sequence[str], tuned: range = TWO) -> str:
    """The tests of all candidates on one problem, best first; those of `names` may be missing."""
    bases = {name: result(store, problem, name, tuned) for name in ("sgd", "sgd-clipped")}
    rows, missing = [], []
    for name in dict.fromkeys((*names, *CANDIDATES)):
        found = result(store, problem, name, tuned)
        if found is None:
            missing += [name] if name in names else []
            continue
        differences = [
            "" if base is None or name == other else str(paired(found, base))
            for other, base in bases.items()
        ]
        rows.append(
            [name, f"{found.rate:g}{'*' if found.is_edge else ''}"]
            + [f"{mean:.1f}" for mean in found.means]
            + [f"{found.means.mean():.2f}", *differences, len(found.tests)]
        )
    rows.sort(key=lambda row: -float(row[-4]))
    if (ceiling := ceilings(store, problem)) is not None:
        means = [f"{mean:.1f}" for mean in ceiling]
        rows.append(["*alone*", "", *means, f"{np.mean(ceiling):.2f}", "", "", ""])
    else:
        missing.append("alone")
    outputs = [f"output {k + 1}" for k in range(problem.outputs)]
    header = ["method", "rate", *outputs, "mean", *(f"mean − {base}'s" for base in bases), "seeds"]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    return table(header, rows) + said


def gains(
    store: Store,
    among: Sequence[Problem],
    names: Sequence[str],
    tuned: range = TWO,
    tested: range = FIRST,
) -> str:
    """How far candidates are above the first of them, a row for each problem, and their means.

    Args:
      store: the runs.
      among: the problems.
      names: of the candidates; `"alone"` for each output trained alone.
      tuned: the seeds that chose the rates.
      tested: those of the tests.
    """
    rows, missing = [], []
    means: dict[str, list[float]] = {name: [] for name in names[1:]}
    for problem in among:
        base = result(store, problem, names[0], tuned, tested)
        if base is None:
            missing.append(f"{problem.name} {names[0]}")
            continue
        row = [problem.name, f"{base.means.mean():.1f}"]
        for name in names[1:]:
            shown = ""
            if name == "alone":
                if (ceiling := ceilings(store, problem)) is not None:
                    means[name].append(float(np.mean(ceiling - base.means)))
                    shown = f"{means[name][-1]:+.2f}"
            elif found := result(store, problem, name, tuned, tested):
                difference = paired(found, base)
                means[name].append(difference.mean)
                shown = str(difference)
            row.append(shown)
            missing += [] if shown else [f"{problem.name} {name}"]
        rows.append([*row, len(base.tests)])
    if len(rows) > 1:
        over = [str(interval(np.array(each))) if len(each) > 1 else "" for each in means.values()]
        rows.append(["*mean, interval over problems*", "", *over, ""])
    header = ["problem", names[0], *(f"{name} − {names[0]}" for name in names[1:]), "seeds"]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    return table(header, rows) + said


def gain(store: Store, problem: Problem, name: str, base: str) -> str:
    """How far a candidate is above another on test data, both tuned by the same stage."""
    found = best_tuned(store, problem, name, base)
    return str(paired(found[0], found[1])) if found else "missing"


def table(header: list[str], rows: Iterable[list[Any]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
