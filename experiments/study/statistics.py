"""What a study's runs say: means, paired differences and their intervals."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.study.candidates import CANDIDATES, alone
from experiments.study.problems import Problem
from experiments.study.runs import accuracies, best_rate, by_rate, read, to_tune


class Result(NamedTuple):
    """A candidate's tests on a problem.

    Attributes:
      name: of the candidate.
      rate: chosen on validation data.
      is_edge: whether the chosen rate is the smallest or largest that was tried.
      tests: test accuracy in percent, `[K]`, by seed.
      runs: all its runs of the stage that is shown.
    """

    name: str
    rate: float
    is_edge: bool
    tests: dict[int, np.ndarray]
    runs: list[dict[str, Any]]

    @property
    def means(self) -> np.ndarray:
        """Mean over seeds, `[K]`."""
        return np.mean(list(self.tests.values()), axis=0)

    def series(self, *fields: str) -> np.ndarray:
        """A field of the looks, the mean over runs: `[looks, ...]`."""
        looks = [[look[fields[0]] for look in run["looks"]] for run in self.runs]
        return np.nanmean(np.array(looks, float), axis=0)


class Interval(NamedTuple):
    """A mean with its 95 % interval, of Student's t over `pairs` paired differences."""

    mean: float
    half_width: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half_width:.2f}"

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside."""
        return abs(self.mean) > self.half_width


def result(
    folder: Path, problem: Problem, name: str, stage: str = "tune", tests: str = "test"
) -> Result | None:
    """The tests of a candidate, at the rate that one stage chose.

    Args:
      folder: of the runs.
      problem: what was trained.
      name: of the candidate.
      stage: `"tune"`, with two seeds, or `"rates"`, with ten.
      tests: the stage of the tests: `"test"`, or `"confirm"` with fresh seeds.

    Returns:
      None where tuning is not complete or its tests are missing.
    """
    kept = read(folder / problem.name / f"{name}.jsonl")
    if to_tune(kept, stage, (CANDIDATES | alone(problem))[name].rates):
        return None
    tried, rate = list(by_rate(kept, stage)), best_rate(kept, stage)
    runs = [run for run in kept if run["stage"] == tests and run["learning_rate"] == rate]
    scores = accuracies(runs, tests, "test")
    return Result(name, rate, rate in (tried[0], tried[-1]), scores, runs) if scores else None


def best_tuned(folder: Path, problem: Problem, *names: str) -> list[Result]:
    """The tests of some candidates, all at rates that one stage chose: `"rates"` if all have it.

    Returns:
      Nothing where tests of one of them are missing.
    """
    for stage in ("rates", "tune"):
        found = [result(folder, problem, name, stage) for name in names]
        if all(found):
            return [each for each in found if each is not None]
    return []


def paired(first: Result, second: Result, output: int | None = None) -> Interval:
    """The first's test accuracy less the second's, paired by seed.

    Args:
      first: a result.
      second: another on the same problem.
      output: of this output; of the mean over outputs if None.
    """
    seeds = sorted(first.tests.keys() & second.tests.keys())
    differences = np.array([first.tests[seed] - second.tests[seed] for seed in seeds])
    values = differences.mean(axis=1) if output is None else differences[:, output]
    return interval(values)


def interval(values: np.ndarray) -> Interval:
    """The mean of some values with its interval; of infinite width for a single one."""
    if len(values) < 2:
        return Interval(float(np.mean(values)), float("inf"), len(values))
    width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Interval(float(np.mean(values)), float(width), len(values))


def ceilings(folder: Path, problem: Problem) -> np.ndarray | None:
    """Mean test accuracy of each output trained alone, `[K]`; None where a run is missing."""
    found = [result(folder, problem, name) for name in alone(problem)]
    if any(each is None for each in found):
        return None
    return np.array([each.means[0] for each in found if each is not None])
