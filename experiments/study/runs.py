"""The runs of a study: tuned on validation data, ranked there, and tested once; kept in files.

A file holds the runs of one candidate on one problem, a JSON object a line. A run that is in its
file is not done again, so that a study goes on where it stopped.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.data import Dataset
from experiments.study.candidates import Candidate
from experiments.study.problems import Problem
from experiments.study.training import Run, Trainer

TUNING_SEEDS = (0, 1)


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

    def tune(self) -> float:
        """The rate with the best mean accuracy over outputs and tuning seeds on validation data.

        Where the best rate is at an end of the grid, as many rates beyond it are tried, once.
        """
        rates = self.candidate.rates
        self._try(rates)
        best, step = best_rate(self.kept), rates[1] / rates[0]
        if math.isclose(best, rates[-1]):
            self._try(rate * step ** len(rates) for rate in rates)
        elif best < rates[0] or math.isclose(best, rates[0]):
            self._try(rate / step ** len(rates) for rate in rates)
        return best_rate(self.kept)

    def _try(self, rates: Iterable[float]) -> None:
        self._complete("tune", [(seed, rate) for rate in rates for seed in TUNING_SEEDS])

    def finish(self, stage: str, rate: float, seeds: range) -> None:
        """Train at one rate from many seeds; in stage `"test"` the test data is looked at."""
        self._complete(stage, [(seed, rate) for seed in seeds])

    def _complete(self, stage: str, wanted: list[tuple[int, float]]) -> None:
        done = {(r["seed"], r["learning_rate"]) for r in self.kept if r["stage"] == stage}
        missing = [Run(*run) for run in wanted if run not in done]
        if not missing:
            return
        if self._trainer is None:
            method = self.candidate.make(self.problem)
            group = len(TUNING_SEEDS) * len(self.candidate.rates)
            self._trainer = Trainer(self.problem, self._dataset(), method, group)
        flops = self._trainer.flops()
        for group in _groups(missing, self._trainer.group):
            trained = self._trainer.train(
                group,
                test=stage == "test",
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
    return [json.loads(line) for line in path.read_text().splitlines()]


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
