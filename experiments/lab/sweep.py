"""Selections of stored runs: those that tune, the rate that they choose, those that answer."""

from collections.abc import Sequence

import numpy as np

from experiments.study.questions import Question
from experiments.study.store import Run

# A stage, a seed and a learning rate.
Wanted = tuple[str, int, float]


def at_rates(runs: Sequence[Run], seeds: range) -> dict[float, dict[int, float]]:
    """Mean accuracy on validation data over outputs, by rate and seed of a tuning."""
    found: dict[float, dict[int, float]] = {}
    for run in runs:
        if run["stage"] == "tune" and run["seed"] in seeds:
            mean = 100 * float(np.mean(run["validation_accuracy"]))
            found.setdefault(run["learning_rate"], {})[run["seed"]] = mean
    return dict(sorted(found.items()))


def by_rate(runs: Sequence[Run], seeds: range) -> dict[float, float]:
    """Mean accuracy on validation data over outputs and the seeds of a tuning, by rate."""
    means = at_rates(runs, seeds)
    return {rate: float(np.mean(list(scores.values()))) for rate, scores in means.items()}


def best_rate(runs: Sequence[Run], seeds: range) -> float:
    """The rate that is best by the seeds of a tuning."""
    means = by_rate(runs, seeds)
    return max(means, key=lambda rate: means[rate])


def at(runs: Sequence[Run], stage: str, rate: float, seeds: range) -> list[Run]:
    """The runs of some seeds in one stage at one rate."""
    return [
        run
        for run in runs
        if (run["stage"], run["learning_rate"]) == (stage, rate) and run["seed"] in seeds
    ]


def to_tune(runs: Sequence[Run], seeds: range, grid: Sequence[float]) -> list[tuple[int, float]]:
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


def lacking(question: Question, runs: Sequence[Run], grid: Sequence[float]) -> list[Wanted]:
    """What has to be trained next of one method on one problem; empty once all is there."""
    if left := to_tune(runs, question.tuned, grid):
        return [("tune", seed, rate) for seed, rate in left]
    rate = best_rate(runs, question.tuned)
    done = {run["seed"] for run in at(runs, question.stage, rate, question.seeds)}
    return [(question.stage, seed, rate) for seed in question.seeds if seed not in done]


def answers(question: Question, runs: Sequence[Run]) -> list[Run]:
    """The runs of one method on one problem that answer a question."""
    tuning = [run for run in runs if run["stage"] == "tune" and run["seed"] in question.tuned]
    if not tuning:
        return []
    rate = best_rate(tuning, question.tuned)
    return tuning + at(runs, question.stage, rate, question.seeds)
