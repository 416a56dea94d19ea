"""What is run where: all candidates on one problem, the best of them on the others."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from experiments.study import problems, times
from experiments.study.candidates import (
    ADAPTIVE,
    ASKED_AGAIN,
    CANDIDATES,
    COMPARED,
    CONFIRMED,
    CONTROLS,
    CORE,
    FIXED_WEIGHTS,
    FOLLOW_UPS,
    LATER,
    LEADING,
    OTHERS,
    SCOPES,
    Candidate,
    alone,
)
from experiments.study.problems import SCREEN, Problem
from experiments.study.runs import FIRST, FRESH, TEN, TWO, Runs, by_rate
from experiments.study.store import Run, Store

Part = Literal["screen", "families", "rates", "confirm", "settings", "images", "conflict", "times"]
PARTS: tuple[Part, ...] = get_args(Part)

# Settings, and images that are asked again: their rates are chosen by the seeds of the ranking,
# which tested the settings first.
SETTING_SEEDS = FRESH[:20]

# An image net trains for minutes, so that fewer are trained.
IMAGE_TEST_SEEDS = FIRST[:10]

RUNS = "runs.jsonl"
TIMES = "times.json"

# Of all candidates so many go on from tuning to ranking, and from there to the tests, beside those
# that answer a question.
RANKED = 12
FINALISTS = 5

_ALWAYS_RANKED = ("sgd", *FIXED_WEIGHTS, *SCOPES, *FOLLOW_UPS)
_ALWAYS_TESTED = (*_ALWAYS_RANKED, *OTHERS, *CONTROLS)


@dataclasses.dataclass(frozen=True)
class Study:
    """A study that is kept in a store.

    Attributes:
      store: of its runs.
      fashion_mnist: where `tensorflow_datasets` keeps Fashion-MNIST; its default if None.
      cifar10_jpeg: folder of CIFAR-10 (JPEG).
      advance: called with a line after each epoch of a group of nets.
    """

    store: Store
    fashion_mnist: Path | None = None
    cifar10_jpeg: Path | None = None
    advance: Callable[[str], None] = lambda line: None

    def run(self, part: Part) -> None:
        """Run one of `PARTS`, as far as it is not done."""
        if part == "screen":
            self._screen()
        elif part == "families":
            for problem in problems.FAMILIES[1:]:
                self._test(problem, self.shortlist(problem), FIRST)
        elif part == "rates":
            for problem in problems.FAMILIES:
                self._retune(problem, CORE, "test", FIRST)
            self._retune(problems.SHORT[0], COMPARED, "test", IMAGE_TEST_SEEDS)
        elif part == "confirm":
            for problem in problems.FAMILIES:
                self._retune(problem, CONFIRMED, "test", FRESH)
        elif part == "settings":
            for problem in problems.SETTINGS:
                self._test(problem, ("sgd", best_scope(self.store)), TEN)
                self._retune(problem, LEADING, "test", SETTING_SEEDS)
            self._retune(SCREEN, ADAPTIVE, "test", SETTING_SEEDS)
        elif part == "images":
            for problem in problems.SHORT:
                self._test(problem, COMPARED, IMAGE_TEST_SEEDS)
            for problem in problems.IMAGES:
                self._test(problem, self.shortlist(problem), IMAGE_TEST_SEEDS)
            for problem in problems.ASKED_AGAIN:
                self._retune(problem, ASKED_AGAIN, "test", SETTING_SEEDS)
        elif part == "times":
            among = (*problems.FAMILIES, *problems.IMAGES)
            times.complete(self.store.path.parent / TIMES, among, self._load, self.advance)
        else:
            for problem in problems.FAMILIES:
                self._retune(problem, ("sgd",), "look", TEN)
            for problem in problems.IMAGES:
                self._retune(problem, ("sgd",), "look", TEN[:3], TWO)

    def shortlist(self, problem: Problem) -> tuple[str, ...]:
        """The candidates that go on from the screen to another problem."""
        chosen, fixed = finalists(self.store), best_fixed(self.store)
        if problem in problems.WIDE:
            return (*COMPARED, *fixed, *chosen)
        if problem in problems.IMAGES:
            return (*COMPARED, *chosen[:1])
        always = ("sgd", *fixed, "sgd-clipped", "adamw", *SCOPES[:3])
        return tuple(dict.fromkeys((*always, *CONTROLS, *FOLLOW_UPS, *chosen)))

    def _screen(self) -> None:
        for name in CANDIDATES:
            self._runs(SCREEN, name).tune()
        for name in ranked(self.store):
            runs = self._runs(SCREEN, name)
            runs.finish("rank", runs.tune(), TEN)
        chosen = (*_ALWAYS_TESTED, *finalists(self.store))
        self._test(SCREEN, tuple(dict.fromkeys(chosen)), FIRST)

    def _test(self, problem: Problem, names: tuple[str, ...], seeds: range) -> None:
        ceilings = alone(problem) if problem not in problems.SETTINGS else {}
        for name in (*names, *ceilings):
            runs = self._runs(problem, name)
            runs.finish("test", runs.tune(), seeds)

    def _retune(
        self,
        problem: Problem,
        names: tuple[str, ...],
        stage: str,
        seeds: range,
        tuned: range = TEN,
    ) -> None:
        for name in names:
            runs = self._runs(problem, name)
            runs.finish(stage, runs.tune(tuned), seeds)

    def _runs(self, problem: Problem, name: str) -> Runs:
        candidate: Candidate = (CANDIDATES | alone(problem))[name]
        problem = dataclasses.replace(problem, epochs=round(candidate.epochs * problem.epochs))
        return Runs(self.store, problem, lambda: self._load(problem), name, candidate, self.advance)

    def _load(self, problem: Problem) -> Any:
        return problem.load(self.fashion_mnist, self.cifar10_jpeg)


def tuned(store: Store) -> dict[str, float]:
    """Best validation accuracy of each candidate in tuning on the screen's problem, best first."""
    found = {}
    for name, runs in _screened(store):
        if means := by_rate(runs):
            found[name] = max(means.values())
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def ranked(store: Store) -> list[str]:
    """The candidates that go on to ranking: the best, and those that always go on."""
    order = [name for name in tuned(store) if name not in LATER]
    return [name for name in order if name in order[:RANKED] or name in _ALWAYS_RANKED]


def ranking(store: Store) -> dict[str, float]:
    """Mean validation accuracy over the ranking seeds, best first; empty until all are ranked."""
    found = {}
    for name, runs in _screened(store):
        if scores := [
            100 * np.array(r["validation_accuracy"]) for r in runs if r["stage"] == "rank"
        ]:
            found[name] = float(np.mean(scores))
    if len(tuned(store)) < len(CANDIDATES) or not set(ranked(store)) <= found.keys():
        return {}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def finalists(store: Store) -> tuple[str, ...]:
    """The best five of the methods in the ranking, baselines and controls aside."""
    aside = {"sgd", *FIXED_WEIGHTS, *OTHERS, *CONTROLS, *FOLLOW_UPS, *LATER}
    return tuple(name for name in ranking(store) if name not in aside)[:FINALISTS]


def best_fixed(store: Store) -> tuple[str, ...]:
    """The best of the fixed weights in the ranking, if it is done."""
    return tuple(name for name in ranking(store) if name in FIXED_WEIGHTS)[:1]


def best_scope(store: Store) -> str:
    """The best of OSGD's scopes in the ranking."""
    return next(name for name in ranking(store) if name in SCOPES)


def _screened(store: Store) -> Iterator[tuple[str, Sequence[Run]]]:
    for name in CANDIDATES:
        yield name, store.of(SCREEN.name, name)
