"""How long a step of training takes by each method, all measured in turn in one process."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from experiments.benchmark.timing import spread, time_in_turn
from experiments.data import Dataset
from experiments.files import read_json, write_json
from experiments.study.candidates import CANDIDATES
from experiments.study.problems import Problem
from experiments.tables import machine

TIMED = ("sgd", "sgd-clipped", "osgd-shared", "osgd-all")

FILE = "times.json"

_ROUNDS = 40


def measure(problem: Problem, dataset: Dataset) -> dict[str, dict[str, float]]:
    """Time of a step by the time of SGD's in the same round, by method.

    One net is trained at a time: a step of it, or an epoch where a call trains on a whole one.
    """
    steps = {
        name: problem.trainer(dataset, CANDIDATES[name].make(problem)).stepper() for name in TIMED
    }
    seconds = time_in_turn(steps, _ROUNDS)
    return {name: spread(each / seconds["sgd"]) for name, each in seconds.items()}


def complete(
    path: Path,
    among: Iterable[Problem],
    load: Callable[[Problem], Dataset],
    advance: Callable[[str], None],
) -> None:
    """Measure what is not in the file yet.

    Args:
      path: of the file.
      among: problems to measure.
      load: loads the data of a problem.
      advance: called with a line before each problem.
    """
    times = read(path)
    for problem in among:
        if problem.name not in times:
            advance(f"{problem.name}: time of a step")
            times[problem.name] = measure(problem, load(problem)) | {"machine": machine()}
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, times)


def read(path: Path) -> dict[str, Any]:
    """What was measured, by problem and method."""
    return read_json(path) if path.exists() else {}
