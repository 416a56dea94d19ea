"""Trains what a question asks for and the store does not have."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from experiments.data import Dataset
from experiments.study.candidates import Candidate, named
from experiments.study.problems import Problem
from experiments.study.questions import FRESH, TWO, Question
from experiments.study.selection import Wanted, lacking
from experiments.study.store import Run, Store
from experiments.study.training import Run as Training
from experiments.study.training import Trainer

# What is kept of the looks at the gradients, by stage; of other stages nothing reads them.
_LOOKS = {
    "test": ("epoch", "task_cosines", "shared_norm", "private_norm"),
    "look": ("epoch", "stage_cosines"),
}


def answer(
    question: Question,
    store: Store,
    load: Callable[[Problem], Dataset],
    advance: Callable[[str], None] = lambda line: None,
) -> None:
    """Train what a question still lacks.

    Args:
      question: what is asked.
      store: of all runs; those that it has are not trained.
      load: loads the data of a problem, called when something has to be trained.
      advance: called with a line after each epoch of a group of nets.
    """
    for problem in question.problems:
        for name, candidate in named(problem, question.methods).items():
            trainer = None
            while left := lacking(question, store.of(problem.name, name), candidate.rates):
                trainer = trainer or _trainer(problem, candidate, load(problem))
                about = {"problem": problem.name, "candidate": name}
                for group in _groups(left, trainer.group):
                    store.add(_trained(trainer, group, about, advance))


def lengthened(problem: Problem, candidate: Candidate) -> Problem:
    """The problem with as many epochs as the candidate trains for."""
    return dataclasses.replace(problem, epochs=round(candidate.epochs * problem.epochs))


def _trainer(problem: Problem, candidate: Candidate, dataset: Dataset) -> Trainer:
    problem = lengthened(problem, candidate)
    group = len(TWO) * len(candidate.rates)
    return Trainer(problem, dataset, candidate.make(problem), group)


def _trained(
    trainer: Trainer, group: list[Wanted], about: Run, advance: Callable[[str], None]
) -> Iterator[Run]:
    """Train a group, all of one stage; yield what is kept of each run."""
    stage = group[0][0]
    line = " ".join([*about.values(), stage])
    training = [Training(seed, rate) for _, seed, rate in group]
    trained = trainer.train(training, test=stage == "test", advance=lambda: advance(line))
    work = int(trainer.flops()) * trainer.num_steps
    for run, result in zip(training, trained, strict=True):
        key = {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
        yield about | key | _kept(stage, run.seed, result) | {"work": work}


def _kept(stage: str, seed: int, result: Run) -> Run:
    looks = result.pop("looks")
    fields: Any = () if seed in FRESH else _LOOKS.get(stage, ())
    kept = {field: [look[field] for look in looks] for field in fields}
    return result | ({"looks": kept} if kept else {})


def _groups(runs: list[Wanted], size: int) -> Iterator[list[Wanted]]:
    """Groups of one size; the last is filled up by repeating its last run, which is kept once."""
    for start in range(0, len(runs), size):
        group = runs[start : start + size]
        yield group + [group[-1]] * (size - len(group))
