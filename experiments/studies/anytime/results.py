"""The study's rows as a sweep of the laboratory, and the results that several tables read."""

import numpy as np

from experiments.lab.store import Row, Store
from experiments.lab.sweep import Result, Sweep
from experiments.studies.anytime.candidates import ALONE, METHODS
from experiments.studies.anytime.problems import NetProblem
from experiments.studies.anytime.questions import FIRST, TEN, TWO


def sweep(store: Store) -> Sweep:
    """Return the rows with this study's grids and scores, which are accuracies in percent."""

    def score(row: Row) -> float:
        return 100 * float(np.mean(row["validation_accuracy"]))

    def outcome(row: Row) -> np.ndarray:
        return 100 * np.array(row["test_accuracy"])

    return Sweep(store, lambda method: METHODS[method].rates, score, outcome, widen=True)


def best_tuned(runs: Sweep, problem: NetProblem, *names: str) -> list[Result]:
    """Return the first tests of some methods, all at rates that ten seeds chose, or else two.

    Nothing is returned where tests of one of them are missing.
    """
    for tuned in (TEN, TWO):
        results = [runs.result(problem.name, name, tuned, FIRST) for name in names]
        if all(results):
            return [each for each in results if each is not None]
    return []


def ceilings(runs: Sweep, problem: NetProblem) -> np.ndarray | None:
    """Return the mean test accuracy of each output trained alone, `[K]`; None if one is missing."""
    results = [runs.result(problem.name, name, TWO, FIRST) for name in ALONE[: problem.outputs]]
    if not all(results):
        return None
    return np.array([each.means[0] for each in results if each is not None])


def series(result: Result, field: str) -> np.ndarray:
    """Return a field of the looks, the mean over rows: `[looks, ...]`."""
    return np.nanmean(np.array([row["looks"][field] for row in result.rows], float), axis=0)
