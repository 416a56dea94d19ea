"""A study as data: problems × methods × rates × seeds give rows, and rows give comparisons."""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments.lab.statistics import Interval, interval
from experiments.lab.store import Row, Store


class Run(NamedTuple):
    """One net to train."""

    seed: int
    learning_rate: float


# A stage, and a run that it lacks.
Wanted = tuple[str, Run]

# From problem, method, stage and runs to the rows of each group of runs that is trained together;
# a row holds stage, learning rate, seed and measures.
Train = Callable[[str, str, str, list[Run]], Iterable[Iterable[Row]]]


class Question(NamedTuple):
    """A question, and the runs that answer it.

    The tuning seeds choose each method's rate; other seeds train at this rate.

    Attributes:
      asked: the question in words.
      problems: names of the problems.
      methods: names of the methods.
      tuned: seeds that choose the rate.
      seeds: seeds that train at this rate.
      stage: purpose of these, such as `"test"`.
    """

    asked: str
    problems: tuple[str, ...]
    methods: tuple[str, ...]
    tuned: range
    seeds: range
    stage: str = "test"


class Result(NamedTuple):
    """Tests of a method on a problem, at the rate that the tuning seeds chose.

    Attributes:
      method: its name.
      rate: the chosen rate.
      is_edge: whether this is the lowest or highest rate that was tried.
      tests: outcome of each test by seed, an array.
      rows: the rows of these tests.
    """

    method: str
    rate: float
    is_edge: bool
    tests: dict[int, np.ndarray]
    rows: list[Row]

    @property
    def means(self) -> np.ndarray:
        """Mean outcome over the seeds."""
        return np.mean(list(self.tests.values()), axis=0)

    @property
    def intervals(self) -> list[Interval]:
        """Mean of each number of an outcome over the seeds, with its interval."""
        return [interval(each) for each in np.array(list(self.tests.values())).T]

    @property
    def shown_rate(self) -> str:
        """The chosen rate, with a star at an edge."""
        return f"{self.rate:g}{'*' if self.is_edge else ''}"

    def over(self, other: "Result") -> Interval:
        """Return the mean outcome less that of another result, paired by the common seeds."""
        seeds = sorted(self.tests.keys() & other.tests.keys())
        differences = np.array([self.tests[seed] - other.tests[seed] for seed in seeds])
        return interval(differences.reshape(len(seeds), -1).mean(axis=1))


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Rows of one study, and the way in which they choose rates and compare methods.

    Attributes:
      store: the rows.
      rates: from a method's name to its grid of rates.
      score: of a row with stage "tune", the mean accuracy unless given; the rate of the highest
        mean score is chosen, so an error is negated. A rate with a NaN score is never chosen.
      outcome: of a row that tests, an array; accuracies in percent unless given.
      widen: whether a grid whose best rate is at an end continues beyond this end.
    """

    store: Store
    rates: Callable[[str], Sequence[float]]
    score: Callable[[Row], float] = lambda row: float(np.mean(row["accuracy"]))
    outcome: Callable[[Row], np.ndarray] = lambda row: 100 * np.array(row["accuracy"])
    widen: bool = False

    def answer(
        self, question: Question, train: Train, advance: Callable[[str], None] = lambda line: None
    ) -> None:
        """Train what a question lacks.

        Args:
          question: what to answer.
          train: trains runs; called only for runs that the store does not have.
          advance: called with a line before each method and stage.
        """
        for problem in question.problems:
            for method in question.methods:
                while missing := self.lacking(question, problem, method):
                    stage = missing[0][0]
                    advance(f"{problem} {method} {stage}")
                    for rows in train(problem, method, stage, [run for _, run in missing]):
                        self.store.add({"problem": problem, "method": method} | r for r in rows)

    def lacking(self, question: Question, problem: str, method: str) -> list[Wanted]:
        """Return what has to be trained next; nothing once the question is answered."""
        if missing := self.to_tune(problem, method, question.tuned):
            return [("tune", run) for run in missing]
        rate = self.best_rate(problem, method, question.tuned)
        rows = self.at(problem, method, question.stage, rate, question.seeds)
        done = {row["seed"] for row in rows}
        return [(question.stage, Run(seed, rate)) for seed in question.seeds if seed not in done]

    def to_tune(self, problem: str, method: str, seeds: range) -> list[Run]:
        """Return the runs that tuning lacks: of the grid, then beyond an end that is best."""
        grid = self.rates(method)
        done = {
            Run(row["seed"], row["learning_rate"])
            for row in self.store.of(problem, method)
            if row["stage"] == "tune"
        }

        def missing(rates: Sequence[float]) -> list[Run]:
            return [run for rate in rates for seed in seeds if (run := Run(seed, rate)) not in done]

        first = missing(grid)
        if first or not self.widen or len(grid) == 1:
            return first
        means = self.mean_scores(problem, method, seeds)
        best = _best({rate: means[rate] for rate in grid})
        if best not in (grid[0], grid[-1]):
            return []
        factor = (grid[1] / grid[0]) ** len(grid)
        return missing([rate * factor if best == grid[-1] else rate / factor for rate in grid])

    def tuning(self, problem: str, method: str, seeds: range) -> dict[float, dict[int, float]]:
        """Return the score of each seed by rate, the lowest rate first."""
        scores: dict[float, dict[int, float]] = {}
        for row in self.store.of(problem, method):
            if row["stage"] == "tune" and row["seed"] in seeds:
                scores.setdefault(row["learning_rate"], {})[row["seed"]] = self.score(row)
        return dict(sorted(scores.items()))

    def mean_scores(self, problem: str, method: str, seeds: range) -> dict[float, float]:
        """Return the mean score over the tuning seeds by rate."""
        scores = self.tuning(problem, method, seeds)
        return {rate: float(np.mean(list(each.values()))) for rate, each in scores.items()}

    def best_rate(self, problem: str, method: str, seeds: range) -> float:
        """Return the rate with the highest mean score.

        Raises:
          ValueError: no run has tuned, and the grid has several rates; or every rate has diverged.
        """
        means = self.mean_scores(problem, method, seeds)
        grid = self.rates(method)
        if not means and len(grid) > 1:
            raise ValueError(
                f"`tuned` must choose from {len(grid)} rates of {method}, got {seeds}, of which no"
                " seed has run; name seeds that tune."
            )
        return _best(means) if means else grid[0]

    def at(self, problem: str, method: str, stage: str, rate: float, seeds: range) -> list[Row]:
        """Return the rows of one stage at one rate."""
        rows = self.store.of(problem, method)
        return [
            row
            for row in rows
            if (row["stage"], row["learning_rate"]) == (stage, rate) and row["seed"] in seeds
        ]

    def answers(self, question: Question, problem: str, method: str) -> list[Row]:
        """Return the rows of one method on one problem that answer a question."""
        rows = self.store.of(problem, method)
        tuned = [row for row in rows if row["stage"] == "tune" and row["seed"] in question.tuned]
        if not tuned:
            return []
        rate = self.best_rate(problem, method, question.tuned)
        return tuned + self.at(problem, method, question.stage, rate, question.seeds)

    def result(self, problem: str, method: str, tuned: range, tested: range) -> Result | None:
        """Return the tests of some seeds; None while tuning is incomplete or without a test."""
        if self.to_tune(problem, method, tuned):
            return None
        tried = list(self.tuning(problem, method, tuned))
        rate = self.best_rate(problem, method, tuned)
        rows = self.at(problem, method, "test", rate, tested)
        tests = {row["seed"]: self.outcome(row) for row in rows}
        return Result(method, rate, rate in (tried[0], tried[-1]), tests, rows) if rows else None

    def results(
        self, problems: Iterable[str], methods: Collection[str], tuned: range, tested: range
    ) -> dict[str, dict[str, Result]]:
        """Return what was tested, by problem and method."""
        found: dict[str, dict[str, Result]] = {}
        for problem in problems:
            for method in methods:
                if result := self.result(problem, method, tuned, tested):
                    found.setdefault(problem, {})[method] = result
        return found


def _best(means: Mapping[float, float]) -> float:
    """Return the rate with the highest mean score, without rates at which a run diverged."""
    finite = {rate: mean for rate, mean in means.items() if not np.isnan(mean)}
    if not finite:
        raise ValueError(
            f"`rates` must have one at which no run diverges, got {sorted(means)}, all with NaN"
            " scores; add lower rates."
        )
    return max(finite, key=lambda rate: finite[rate])
