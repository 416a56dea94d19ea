"""The runs of a study: tuned on validation data, ranked there, and tested; none is done twice."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from experiments.data import Dataset
from experiments.study.candidates import Candidate
from experiments.study.problems import Problem
from experiments.study.store import Store
from experiments.study.training import Run, Trainer

# Seeds that choose a rate: two for all candidates, ten for those that the conclusions speak of.
TWO, TEN = range(2), range(10, 20)

# Seeds of the tests: the first, and those that nothing saw before the question that they answer.
FIRST, FRESH = range(100, 120), range(200, 240)

# What is kept of the looks at the gradients, by stage; of other stages nothing reads them.
_LOOKS = {
    "test": ("epoch", "task_cosines", "shared_norm", "private_norm"),
    "look": ("epoch", "stage_cosines"),
}


class Runs:
    """The runs of one candidate on one problem.

    Args:
      store: of the study.
      problem: what is trained.
      dataset: loads the problem's data, called when something has to be trained.
      name: of the candidate.
      candidate: how it is trained.
      advance: called with a line after each epoch.
    """

    def __init__(
        self,
        store: Store,
        problem: Problem,
        dataset: Callable[[], Dataset],
        name: str,
        candidate: Candidate,
        advance: Callable[[str], None] = lambda line: None,
    ):
        self.store, self.problem, self.name, self.candidate = store, problem, name, candidate
        self._dataset, self._advance = dataset, advance
        self._trainer: Trainer | None = None

    @property
    def kept(self) -> Sequence[dict[str, Any]]:
        """What the store has of them."""
        return self.store.of(self.problem.name, self.name)

    def tune(self, seeds: range = TWO) -> float:
        """The rate with the best mean accuracy over outputs and seeds on validation data.

        Where the best rate is at an end of the grid, as many rates beyond it are tried, once.
        """
        while missing := to_tune(self.kept, seeds, self.candidate.rates):
            self._complete("tune", missing)
        return best_rate(self.kept, seeds)

    def finish(self, stage: str, rate: float, seeds: range) -> None:
        """Train at one rate from many seeds; in stage "test" the test data is looked at."""
        self._complete(stage, [(seed, rate) for seed in seeds])

    def _complete(self, stage: str, wanted: list[tuple[int, float]]) -> None:
        done = {(r["seed"], r["learning_rate"]) for r in self.kept if r["stage"] == stage}
        missing = [Run(*run) for run in wanted if run not in done]
        if not missing:
            return
        if self._trainer is None:
            method = self.candidate.make(self.problem)
            group = len(TWO) * len(self.candidate.rates)
            self._trainer = Trainer(self.problem, self._dataset(), method, group)
        flops = self._trainer.flops()
        for group in _groups(missing, self._trainer.group):
            trained = self._trainer.train(
                group,
                test=stage == "test",
                advance=lambda: self._advance(f"{self.problem.name} {self.name} {stage}"),
            )
            self.store.add(
                {
                    "problem": self.problem.name,
                    "candidate": self.name,
                    "stage": stage,
                    "learning_rate": run.learning_rate,
                    "seed": run.seed,
                    **_kept(stage, run.seed, result),
                    "work": int(flops) * self._trainer.num_steps,
                }
                for run, result in zip(group, trained, strict=True)
            )


def _kept(stage: str, seed: int, result: dict[str, Any]) -> dict[str, Any]:
    looks = result.pop("looks")
    fields = () if seed in FRESH else _LOOKS.get(stage, ())
    kept = {field: [look[field] for look in looks] for field in fields if field in looks[0]}
    return result | ({"looks": kept} if kept else {})


def to_tune(
    runs: Sequence[dict[str, Any]], seeds: range, grid: Sequence[float]
) -> list[tuple[int, float]]:
    """The seeds and rates that tuning still has to run; empty once it is complete.

    First the grid; then, where its best rate is at one of its ends, as many rates beyond that.
    """
    done = {(run["seed"], run["learning_rate"]) for run in runs if run["stage"] == "tune"}

    def missing(rates: Sequence[float]) -> list[tuple[int, float]]:
        wanted = [(seed, rate) for rate in rates for seed in seeds]
        return [run for run in wanted if run not in done]

    if first := missing(grid):
        return first
    best = best_rate([run for run in runs if run["learning_rate"] in grid], seeds)
    if best not in (grid[0], grid[-1]):
        return []
    factor = (grid[1] / grid[0]) ** len(grid)
    return missing([rate * factor if best == grid[-1] else rate / factor for rate in grid])


def by_rate(runs: Sequence[dict[str, Any]], seeds: range = TWO) -> dict[float, float]:
    """Mean accuracy on validation data over outputs and the seeds of a tuning, by rate."""
    means = at_rates(runs, seeds)
    return {rate: float(np.mean(list(scores.values()))) for rate, scores in means.items()}


def at_rates(runs: Sequence[dict[str, Any]], seeds: range) -> dict[float, dict[int, float]]:
    """Mean accuracy on validation data over outputs, by rate and seed of a tuning."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        if run["stage"] == "tune" and run["seed"] in seeds:
            mean = 100 * float(np.mean(run["validation_accuracy"]))
            found.setdefault(run["learning_rate"], {})[run["seed"]] = mean
    return dict(sorted(found.items()))


def best_rate(runs: Sequence[dict[str, Any]], seeds: range = TWO) -> float:
    """The rate that is best by the seeds of a tuning."""
    means = by_rate(runs, seeds)
    return max(means, key=lambda rate: means[rate])


def _groups(runs: list[Run], size: int) -> Iterator[list[Run]]:
    """Groups of one size; the last is filled up by repeating its last run, which is kept once."""
    for start in range(0, len(runs), size):
        group = runs[start : start + size]
        yield group + [group[-1]] * (size - len(group))
