"""What stored runs say: tests at the chosen rates, paired differences and their intervals."""

from typing import NamedTuple

import numpy as np

from experiments.study.candidates import named
from experiments.study.problems import Problem
from experiments.study.questions import FIRST, TEN, TWO
from experiments.study.selection import at, best_rate, by_rate, to_tune
from experiments.study.store import Run, Store
from experiments.tables import Interval, interval


class Result(NamedTuple):
    """A candidate's tests on a problem.

    Attributes:
      name: of the candidate.
      rate: chosen on validation data.
      is_edge: whether the chosen rate is the smallest or largest that was tried.
      tests: test accuracy in percent, `[K]`, by seed.
      runs: those tests.
    """

    name: str
    rate: float
    is_edge: bool
    tests: dict[int, np.ndarray]
    runs: list[Run]

    @property
    def means(self) -> np.ndarray:
        """Mean over seeds, `[K]`."""
        return np.mean(list(self.tests.values()), axis=0)

    def series(self, field: str) -> np.ndarray:
        """A field of the looks, the mean over runs: `[looks, ...]`."""
        return np.nanmean(np.array([run["looks"][field] for run in self.runs], float), axis=0)


def result(
    store: Store, problem: Problem, name: str, tuned: range = TWO, tested: range = FIRST
) -> Result | None:
    """The tests of a candidate, at the rate that some seeds chose.

    Args:
      store: the runs.
      problem: what was trained.
      name: of the candidate.
      tuned: the seeds that chose the rate.
      tested: those of the tests, of which some may be missing.

    Returns:
      None where tuning is not complete or there are no tests.
    """
    kept = store.of(problem.name, name)
    if to_tune(kept, tuned, named(problem, [name])[name].rates):
        return None
    tried, rate = list(by_rate(kept, tuned)), best_rate(kept, tuned)
    runs = at(kept, "test", rate, tested)
    tests = {run["seed"]: 100 * np.array(run["test_accuracy"]) for run in runs}
    return Result(name, rate, rate in (tried[0], tried[-1]), tests, runs) if runs else None


def best_tuned(store: Store, problem: Problem, *names: str) -> list[Result]:
    """The first tests of some candidates, all at rates that ten seeds chose, or else two.

    Returns:
      Nothing where tests of one of them are missing.
    """
    for tuned in (TEN, TWO):
        found = [result(store, problem, name, tuned) for name in names]
        if all(found):
            return [each for each in found if each is not None]
    return []


def ceilings(store: Store, problem: Problem) -> np.ndarray | None:
    """Mean test accuracy of each output trained alone, `[K]`; None where a run is missing."""
    found = [result(store, problem, name) for name in named(problem, ["alone"])]
    if any(each is None for each in found):
        return None
    return np.array([each.means[0] for each in found if each is not None])


def paired(first: Result, second: Result) -> Interval:
    """The first's test accuracy less the second's, the mean over outputs, paired by seed."""
    seeds = sorted(first.tests.keys() & second.tests.keys())
    differences = np.array([first.tests[seed] - second.tests[seed] for seed in seeds])
    return interval(differences.mean(axis=1))
