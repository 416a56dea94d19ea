"""The runs of a study: tuned on validation data, ranked there, and tested once; kept in files.

A file holds the runs of one candidate on one problem, a JSON object a line. A run that is in its
file is not done again, so that a study goes on where it stopped.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import Dataset
from experiments.study.candidates import Candidate
from experiments.study.problems import Problem
from experiments.study.training import Run, Trainer

# Seeds that choose a rate, by the stage that does: few for all candidates, many for those that the
# conclusions speak of.
TUNING_SEEDS = {"tune": range(2), "rates": range(10, 20)}

# Stages that look at the test data.
TESTS = ("test", "confirm")


class Runs:
    """The runs of one candidate on one problem.

    Args:
      folder: of the study's results.
      problem: what is trained.
      dataset: loads the problem's data, called when something has to be trained.
      name: of the candidate.
      candidate: how it is trained.
      advance: called with a line after each epoch.
    """

    def __init__(
        self,
        folder: Path,
        problem: Problem,
        dataset: Callable[[], Dataset],
        name: str,
        candidate: Candidate,
        advance: Callable[[str], None] = lambda line: None,
    ):
        self.problem, self.name, self.candidate = problem, name, candidate
        self.path = folder / problem.name / f"{name}.jsonl"
        self._dataset, self._advance = dataset, advance
        self._trainer: Trainer | None = None
        self.kept = read(self.path)

    def tune(self, stage: str = "tune") -> float:
        """The rate with the best mean accuracy over outputs and a stage's seeds on validation data.

        Where the best rate is at an end of the grid, as many rates beyond it are tried, once.
        """
        while missing := to_tune(self.kept, stage, self.candidate.rates):
            self._complete(stage, missing)
        return best_rate(self.kept, stage)

    def finish(self, stage: str, rate: float, seeds: range) -> None:
        """Train at one rate from many seeds; in a stage of `TESTS` the test data is looked at."""
        self._complete(stage, [(seed, rate) for seed in seeds])

    def _complete(self, stage: str, wanted: list[tuple[int, float]]) -> None:
        done = {(r["seed"], r["learning_rate"]) for r in self.kept if r["stage"] == stage}
        missing = [Run(*run) for run in wanted if run not in done]
        if not missing:
            return
        if self._trainer is None:
            method = self.candidate.make(self.problem)
            group = len(TUNING_SEEDS["tune"]) * len(self.candidate.rates)
            self._trainer = Trainer(self.problem, self._dataset(), method, group)
        flops = self._trainer.flops()
        for group in _groups(missing, self._trainer.group):
            trained = self._trainer.train(
                group,
                test=stage in TESTS,
                advance=lambda: self._advance(f"{self.problem.name} {self.name} {stage}"),
            )
            lines = [
                {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
                | result
                | {"step_flops": flops, "steps": self._trainer.num_steps}
                for run, result in dict(zip(group, trained, strict=True)).items()
            ]
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            self.kept += lines


def read(path: Path) -> list[dict[str, Any]]:
    """The runs in a file; none if there is no file."""
    if not path.exists():
        return []
    return list(_parse(path.read_text()))


# A report asks for the same files many times.
@functools.cache
def _parse(text: str) -> tuple[dict[str, Any], ...]:
    return tuple(json.loads(line) for line in text.splitlines())


def to_tune(
    runs: list[dict[str, Any]], stage: str, grid: Sequence[float]
) -> list[tuple[int, float]]:
    """The seeds and rates that a stage of tuning still has to run; empty once it is complete.

    First the grid; then, where its best rate is at one of its ends, as many rates beyond that.
    """
    done = {(run["seed"], run["learning_rate"]) for run in runs if run["stage"] == stage}

    def missing(rates: Sequence[float]) -> list[tuple[int, float]]:
        wanted = [(seed, rate) for rate in rates for seed in TUNING_SEEDS[stage]]
        return [run for run in wanted if run not in done]

    if first := missing(grid):
        return first
    best = best_rate([run for run in runs if run["learning_rate"] in grid], stage)
    if best not in (grid[0], grid[-1]):
        return []
    factor = (grid[1] / grid[0]) ** len(grid)
    return missing([rate * factor if best == grid[-1] else rate / factor for rate in grid])


def accuracies(runs: list[dict[str, Any]], stage: str, split: str) -> dict[int, np.ndarray]:
    """Accuracy of each output in percent, `[K]`, by seed."""
    return {r["seed"]: 100 * np.array(r[f"{split}_accuracy"]) for r in runs if r["stage"] == stage}


def by_rate(runs: list[dict[str, Any]], stage: str = "tune") -> dict[float, float]:
    """Mean accuracy on validation data over outputs and the seeds of one stage, by rate."""
    means = at_rates(runs, stage)
    return {rate: float(np.mean(list(scores.values()))) for rate, scores in means.items()}


def at_rates(runs: list[dict[str, Any]], stage: str) -> dict[float, dict[int, float]]:
    """Mean accuracy on validation data over outputs, by rate and seed, of one stage."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        if run["stage"] == stage:
            mean = 100 * float(np.mean(run["validation_accuracy"]))
            found.setdefault(run["learning_rate"], {})[run["seed"]] = mean
    return dict(sorted(found.items()))


def best_rate(runs: list[dict[str, Any]], stage: str = "tune") -> float:
    """The rate that is best by one stage."""
    means = by_rate(runs, stage)
    return max(means, key=lambda rate: means[rate])


def _groups(runs: list[Run], size: int) -> Iterator[list[Run]]:
    """Groups of one size; the last is filled up by repeating its last run."""
    for start in range(0, len(runs), size):
        group = runs[start : start + size]
        yield group + [group[-1]] * (size - len(group))
