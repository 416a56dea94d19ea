"""The tables of the study on reasons: length, direction and conflict; work; kinds of nets."""

from typing import Any

import numpy as np
from scipy import stats

import osgd_jax
from experiments.lab.report import Table
from experiments.lab.sweep import Result, Sweep
from experiments.studies.anytime import times
from experiments.studies.anytime.problems import ALL, FAMILIES, IMAGES, PROBLEMS, NetProblem
from experiments.studies.anytime.results import best_tuned, series
from experiments.studies.anytime.tables import tested

# Stage, and two losses that its parameters reach, of nets with three outputs.
_PAIRS = ((0, 0, 1), (0, 0, 2), (0, 1, 2), (1, 1, 2))


def controls(runs: Sweep) -> Table:
    """OSGD and the controls of its direction and length, less SGD."""
    pairs = [(name, "sgd") for name in ("osgd-all", "sgd-osgd-length", "osgd-sgd-length")]
    pairs.append(("osgd-all", "sgd-osgd-length"))
    header = ["problem", "OSGD", "SGD's direction, OSGD's length", "OSGD's direction, SGD's length"]
    header.append("OSGD − SGD's direction, OSGD's length")
    names = [problem.name for problem in FAMILIES]
    return Table("", header, [[p, *(tested(runs, *pair, p) for pair in pairs)] for p in names])


def optimization(runs: Sweep) -> Table:
    """Training and test accuracy, single seeds, and norms over shared and private parameters."""
    rows = []
    for problem in ALL:
        for name in ("sgd", "sgd-clipped", "osgd-shared", "osgd-all", "osgd-reach"):
            for found in best_tuned(runs, problem, name):
                rows.append([problem.name, name, *_optimized(found)])
    header = ["problem", "method", "training loss", "training accuracy", "test accuracy"]
    header += ["worst seed", "median", "best", "shared : private step, first", "last"]
    return Table("", header, rows)


def conflict(runs: Sweep) -> Table:
    """Cosines between gradients in training by SGD, at the first step and later, by stage."""
    rows = []
    for problem in (*FAMILIES, *IMAGES):
        looks = [
            row["looks"] for row in runs.store.of(problem.name, "sgd") if row["stage"] == "look"
        ]
        if looks:
            cosines = np.array([look["stage_cosines"] for look in looks], float)
            first, later = cosines[:, 0].mean(0), cosines[:, 1:].mean((0, 1))
            shown = [f"{first[pair]:+.2f} → {later[pair]:+.2f}" for pair in _PAIRS]
            rows.append([problem.name, *shown, len(looks)])
    pairs = [f"stage {stage + 1}: losses {i + 1}, {j + 1}" for stage, i, j in _PAIRS]
    return Table("", ["problem", *pairs, "seeds"], rows)


def predicted(runs: Sweep) -> Table:
    """Compare the diagnosis of training by SGD with the gains of other methods over it."""
    methods = ("sgd-clipped", "osgd-all", "aligned_mtl")
    rows, scores, gained = [], [], []
    for problem in ALL:
        against = [best_tuned(runs, problem, name, "sgd") for name in methods]
        if all(against):
            # The cosines alone: the looks hold no norms of single gradients.
            cosines = [run["looks"]["task_cosines"] for run in against[0][1].rows]
            seen = osgd_jax.diagnose(np.concatenate(np.array(cosines, float)))
            pairs = np.triu_indices(len(seen.tasks), 1)
            gains = [first.over(second) for first, second in against]
            scores.append(seen.alignment)
            gained.append([gain.mean for gain in gains])
            shown = f"{seen.alignment:+.2f}", f"{seen.cosines[pairs].min():+.2f}"
            rows.append([problem.name, *shown, f"{seen.opposed[pairs].max():.0%}", *gains])
    ranked = [tuple(stats.spearmanr(scores, gain)) for gain in np.transpose(gained)]
    cells = [f"{correlation:+.2f} (p = {p:.2f})" for correlation, p in ranked]
    rows.append([f"*rank correlation with the alignment, {len(rows)} nets*", "", "", "", *cells])
    header = ["problem", "alignment", "least mean cosine", "most often negative"]
    return Table("", [*header, *(f"{name} − sgd" for name in methods)], rows)


def cost(runs: Sweep) -> Table:
    """Work of training and time of a step over SGD's."""
    rows = []
    for problem in ALL:
        for name in ("osgd-shared", "osgd-all", "osgd-reach", "sgd-clipped", "sgd-longer"):
            if found := best_tuned(runs, problem, name, "sgd"):
                work, than = (each.rows[0]["work"] for each in found)
                step = times.median(runs.store, problem.name, name)
                time = "" if step is None else f"{step:.2f}"
                rows.append(
                    [problem.name, name, f"{work / than:.2f}", time, found[0].over(found[1])]
                )
    header = ["problem", "method", "work of training over SGD's", "time over SGD's", "mean − SGD's"]
    return Table("", header, rows)


def nested(runs: Sweep) -> Table:
    """Outputs of nested nets against branched nets of as much work."""
    rows: list[list[Any]] = []
    for problem in (*FAMILIES, *IMAGES):
        for name in ("sgd", "sgd-clipped"):
            found = best_tuned(runs, problem, name)
            if problem.net == "branched" or not found:
                continue
            work = np.array([output.multiply_adds for output in problem.costs()])
            rivals = branched_at(runs, problem, name, work)
            for k, (mean, rival) in enumerate(zip(found[0].means, rivals, strict=True)):
                if np.isfinite(rival):
                    shown = f"{work[k] / 1e3:,.0f}", f"{mean:.1f}", f"{rival:.1f}"
                    rows.append([problem.name, name, k + 1, *shown])
    header = ["problem", "method", "output", "thousand multiply-adds", "nested", "branched"]
    return Table("", header, rows)


def branched_at(runs: Sweep, against: NetProblem, name: str, work: np.ndarray) -> np.ndarray:
    """Test accuracy of the best branched net on the same data at these multiply-adds.

    −∞ where none has as many.
    """
    best = np.full(len(work), -np.inf)
    for problem in PROBLEMS.values():
        if problem.net == "branched" and problem.data == against.data:
            for found in best_tuned(runs, problem, name):
                costs = np.log([output.multiply_adds for output in problem.costs()])
                at = np.interp(np.log(work), costs, found.means, left=-np.inf, right=-np.inf)
                best = np.maximum(best, at)
    return best


def _optimized(found: Result) -> list[str]:
    shared, private = (series(found, f"{kind}_norm") for kind in ("shared", "private"))
    loss = np.mean([run["train_loss"] for run in found.rows])
    train = 100 * np.mean([run["train_accuracy"] for run in found.rows])
    seeds = np.quantile([test.mean() for test in found.tests.values()], (0, 0.5, 1))
    ratios = [f"{shared[i] / private[i]:.2f}" for i in (0, -1)]
    shown = [f"{each:.1f}" for each in (train, found.means.mean(), *seeds)]
    return [f"{loss:.3f}", *shown, *ratios]
