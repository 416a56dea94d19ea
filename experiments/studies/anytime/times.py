"""Time of a training step by each method, all measured in turn in one process."""

from collections.abc import Callable, Iterable

from experiments.app.data import Dataset
from experiments.app.machine import machine
from experiments.lab.store import Row, Store
from experiments.lab.timing import spread, time_in_turn
from experiments.studies.anytime.candidates import CANDIDATES
from experiments.studies.anytime.problems import NetProblem

TIMED = ("sgd", "sgd-clipped", "osgd-shared", "osgd-all")

_ROUNDS = 40


def measure(problem: NetProblem, dataset: Dataset) -> list[Row]:
    """Return the time of a step over that of SGD in the same round, a row for each method.

    One net is trained at a time: one step, or one epoch where a call trains on a whole one.
    """
    steps = {
        name: problem.trainer(dataset, CANDIDATES[name].make(problem)).stepper() for name in TIMED
    }
    seconds = time_in_turn(steps, _ROUNDS)
    key = {"problem": problem.name, "stage": "time", "learning_rate": 0.0, "seed": 0}
    where = machine()
    return [
        {"method": name} | key | spread(each / seconds["sgd"]) | {"machine": where}
        for name, each in seconds.items()
    ]


def complete(
    store: Store,
    problems: Iterable[NetProblem],
    load: Callable[[NetProblem], Dataset],
    advance: Callable[[str], None],
) -> None:
    """Measure the problems that have no times yet.

    Args:
      store: of the rows.
      problems: to measure.
      load: loads the data of a problem.
      advance: called with a line before each problem.
    """
    for problem in problems:
        if median(store, problem.name, "sgd") is None:
            advance(f"{problem.name}: time of a step")
            store.add(measure(problem, load(problem)))


def median(store: Store, problem: str, method: str) -> float | None:
    """Return the median time of a step over SGD's; None if it was not measured."""
    rows = [row for row in store.of(problem, method) if row["stage"] == "time"]
    return rows[0]["median"] if rows else None
