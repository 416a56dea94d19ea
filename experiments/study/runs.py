"""Trains what a question asks for and the store does not have."""

import dataclasses
from collections.abc import Callable, Iterator

from experiments.data import Dataset
from experiments.study.candidates import Candidate, named
from experiments.study.looks import Observer
from experiments.study.problems import Problem
from experiments.study.questions import FRESH, TWO, Question
from experiments.study.selection import lacking
from experiments.study.store import Run, Store
from experiments.trainer import Run as Training

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
            about, observer = {"problem": problem.name, "candidate": name}, None
            while left := lacking(question, store.of(problem.name, name), candidate.rates):
                observer = observer or _observer(problem, candidate, load(problem))
                stage = left[0][0]
                line = " ".join([*about.values(), stage])
                runs = [Training(seed, rate) for _, seed, rate in left]
                for group in observer.trainer.groups(runs):
                    trained = _trained(observer, stage, group, lambda line=line: advance(line))
                    store.add(about | run for run in trained)


def lengthened(problem: Problem, candidate: Candidate) -> Problem:
    """The problem with as many epochs as the candidate trains for."""
    return dataclasses.replace(problem, epochs=round(candidate.epochs * problem.epochs))


def _observer(problem: Problem, candidate: Candidate, dataset: Dataset) -> Observer:
    problem = lengthened(problem, candidate)
    group = len(TWO) * len(candidate.rates)
    return Observer(problem.trainer(dataset, candidate.make(problem), group))


def _trained(
    observer: Observer, stage: str, group: list[Training], advance: Callable[[], None]
) -> Iterator[Run]:
    """Train a group; yield what is kept of each run."""
    trainer = observer.trainer
    # A group is of first seeds or of fresh ones, but for one that goes on from the former.
    looked_at = _LOOKS.get(stage, ()) if any(run.seed not in FRESH for run in group) else ()
    trained = observer.train(group, test=stage == "test", look=bool(looked_at), advance=advance)
    work = int(trainer.flops()) * trainer.num_steps
    for run, result in zip(group, trained, strict=True):
        key = {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
        looks = result.pop("looks", [])
        kept = {field: [look[field] for look in looks] for field in looked_at}
        yield (
            key
            | result
            | ({"looks": kept} if kept and run.seed not in FRESH else {})
            | {"work": work}
        )
