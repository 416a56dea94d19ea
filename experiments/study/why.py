"""What STUDY.md says of the reasons: length, direction and conflict; work; kinds of nets."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.study import figures, plan, problems, tables, times
from experiments.study.candidates import CONTROLS, SCOPES
from experiments.study.problems import Problem
from experiments.study.statistics import Result, best_tuned, paired
from experiments.study.store import Store

# Stage, and two losses that its parameters reach, of nets with three outputs.
_PAIRS = ((0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 1, 2))


def sections(store: Store) -> Iterator[str]:
    """Sections of the report: why, at what cost, and whether nested nets are better."""
    yield "## Why: direction, length, conflict"
    rows = []
    for problem in problems.FAMILIES:
        row: list[Any] = [problem.name]
        for name in ("osgd-all", *CONTROLS):
            row.append(tables.gain(store, problem, name, "sgd"))
        rows.append([*row, tables.gain(store, problem, "osgd-all", "sgd-osgd-length")])
    header = ["problem", "OSGD", "SGD's direction, OSGD's length", "OSGD's direction, SGD's length"]
    header.append("OSGD − SGD's direction, OSGD's length")
    yield (
        'Mean over outputs less SGD\'s, of OSGD with scope "all" and of two controls that take the'
        " direction of one and the length of the other at every step, each at its own best rate."
        " The last column is what is left to the direction:\n\n" + tables.table(header, rows)
    )
    rows = []
    for problem in problems.ALL:
        for name in ("sgd", "sgd-clipped", *SCOPES[:3]):
            for found in best_tuned(store, problem, name):
                rows.append([problem.name, name, *_optimization(found)])
    header = ["problem", "method", "training loss", "training accuracy", "test accuracy"]
    header += ["worst seed", "median", "best", "shared : private step, first", "last"]
    yield (
        "Does it optimise better or generalise better, and with every seed? Means over outputs, and"
        " over test seeds but where one is named; the last columns are the norm of the direction"
        " over shared parameters by that over private ones, at the first step and at the start of"
        " the last epoch:\n\n" + tables.table(header, rows)
    )
    yield _conflict(store)
    if picture := figures.conflict(store, problems.FAMILIES):
        yield f"![Cosines between the task gradients]({store.path.parent.name}/{picture.name})"
    yield _price(store)
    yield _nested_or_branched(store)


def _conflict(store: Store) -> str:
    rows, missing = [], []
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        kept = store.of(problem.name, "sgd")
        looks = [run["looks"]["stage_cosines"] for run in kept if run["stage"] == "look"]
        if not looks:
            missing.append(problem.name)
            continue
        cosines = np.array(looks, float)
        first, later = cosines[:, 0].mean(0), cosines[:, 1:].mean((0, 1))
        shown = [f"{first[pair]:+.2f} → {later[pair]:+.2f}" for pair in _PAIRS]
        rows.append([problem.name, *shown, len(looks)])
    pairs = [f"stage {stage + 1}: losses {i + 1}, {j + 1}" for stage, i, j in _PAIRS]
    said = f"\n\nMissing: {', '.join(missing)}." if missing else ""
    return (
        "Where do losses conflict? Cosines between the gradients of two losses by the parameters of"
        " one stage, which are those that an output adds, in training by SGD: at the first step →"
        " mean of four looks after it, the last one at the start of the last epoch.\n\n"
    ) + (tables.table(["problem", *pairs, "seeds"], rows) + said)


def _optimization(found: Result) -> list[str]:
    shared, private = found.series("shared_norm"), found.series("private_norm")
    loss = np.mean([run["train_loss"] for run in found.runs])
    train = 100 * np.mean([run["train_accuracy"] for run in found.runs])
    seeds = np.quantile([test.mean() for test in found.tests.values()], (0, 0.5, 1))
    ratios = [f"{shared[i] / private[i]:.2f}" for i in (0, -1)]
    shown = [f"{each:.1f}" for each in (train, found.means.mean(), *seeds)]
    return [f"{loss:.3f}", *shown, *ratios]


def _price(store: Store) -> str:
    rows = []
    seconds = times.read(store.path.parent / plan.TIMES)
    for problem in problems.ALL:
        for name in (*SCOPES[:3], "sgd-clipped", "sgd-longer"):
            if found := best_tuned(store, problem, name, "sgd"):
                work, than = (each.runs[0]["work"] for each in found)
                step = seconds.get(problem.name, {}).get(name)
                time = f"{step['median']:.2f}" if step else ""
                gain = str(paired(found[0], found[1]))
                rows.append([problem.name, name, f"{work / than:.2f}", time, gain])
    header = ["problem", "method", "work of training over SGD's", "time over SGD's", "mean − SGD's"]
    return (
        "## What it costs\n\nWork is counted before compilation, from the traced step. All train"
        " for equal epochs but `sgd-longer`, which has half as many again: about the work of OSGD,"
        " and about its time. The time of a step is that of one net's training, measured in turn"
        " with SGD's (part `times`), the median of the ratios.\n\n" + tables.table(header, rows)
    )


def _nested_or_branched(store: Store) -> str:
    rows = []
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        for name in ("sgd", "sgd-clipped"):
            found = best_tuned(store, problem, name)
            if problem.net == "branched" or not found:
                continue
            work = np.array([output.multiply_adds for output in problem.costs()])
            rivals = _branched_at(store, problem, name, work)
            for k, (mean, rival) in enumerate(zip(found[0].means, rivals, strict=True)):
                if np.isfinite(rival):
                    cost = f"{work[k] / 1e3:,.0f}"
                    rows.append([problem.name, name, k + 1, cost, f"{mean:.1f}", f"{rival:.1f}"])
    header = ["problem", "method", "output", "thousand multiply-adds", "nested", "branched"]
    return (
        "## Nested against branched\n\nTest accuracy in percent of each output of the nested nets,"
        " and of the better of the branched nets at as many multiply-adds, interpolated between its"
        " outputs on a logarithmic scale; outputs outside their range are left out.\n\n"
        + tables.table(header, rows)
    )


def _branched_at(store: Store, nested: Problem, name: str, work: np.ndarray) -> np.ndarray:
    """Test accuracy of the best branched net on the same data at these multiply-adds.

    −∞ where none has as many.
    """
    best = np.full(len(work), -np.inf)
    for problem in (*problems.FAMILIES, *problems.IMAGES):
        found = best_tuned(store, problem, name)
        if problem.net == "branched" and problem.data == nested.data and found:
            costs = np.log([output.multiply_adds for output in problem.costs()])
            at = np.interp(np.log(work), costs, found[0].means, left=-np.inf, right=-np.inf)
            best = np.maximum(best, at)
    return best
