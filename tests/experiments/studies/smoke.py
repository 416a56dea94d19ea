"""Train a corner of the study again and compare it with what is stored.

    python -m tests.experiments.studies.smoke

Rounding differs between machines, and training makes much of little. So the gradients at the start
have to agree closely, and accuracies after training as means only.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.store import Store
from experiments.lab.sweep import Run
from experiments.studies.anytime.candidates import CANDIDATES
from experiments.studies.anytime.problems import SCREEN
from experiments.studies.anytime.questions import FIRST
from experiments.studies.anytime.results import best_tuned, sweep
from experiments.studies.anytime.training import Observer

CORNER = ("sgd", "osgd-all")
RUNS = Path("experiments/results/anytime.jsonl.gz")

_GRADIENTS_TOLERANCE = 1e-2
_POINTS_TOLERANCE = 5.0


def stored(path: Path, name: str) -> list[dict[str, Any]]:
    """The first two of a candidate's tests.

    Raises:
      ValueError: there are none.
    """
    for found in best_tuned(sweep(Store(path)), SCREEN, name):
        return [run for run in found.rows if run["seed"] in FIRST[:2]]
    raise ValueError(f"{path} has no tests of {name} to compare with.")


def again(kept: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The same runs, trained now."""
    dataset = SCREEN.load(None, None)
    trainer = SCREEN.trainer(dataset, CANDIDATES[name].make(SCREEN), len(kept))
    runs = [Run(run["seed"], run["learning_rate"]) for run in kept]
    return Observer(trainer).train(runs, test=False, look=True)


def differences(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[str]:
    """Return a line for each disagreement."""
    found = []
    for old, new in zip(before, now, strict=True):
        for field in ("task_cosines", "shared_norm", "private_norm"):
            a, b = np.array(old["looks"][field][0]), np.array(new["looks"][0][field])
            if not np.allclose(a, b, rtol=_GRADIENTS_TOLERANCE, atol=_GRADIENTS_TOLERANCE):
                found.append(f"seed {old['seed']}: {field} at the start were {a}, are {b}.")
    means = [100 * np.mean([run["validation_accuracy"] for run in runs]) for runs in (before, now)]
    if abs(means[1] - means[0]) > _POINTS_TOLERANCE:
        found.append(f"mean validation accuracy was {means[0]:.1f}, is {means[1]:.1f}.")
    return found


def main() -> None:
    """Command line."""
    failed = False
    for name in CORNER:
        try:
            before = stored(RUNS, name)
        except ValueError as error:
            sys.exit(f"error: {error}")
        now = again(before, name)
        lines = differences(before, now)
        failed |= bool(lines)
        for line in lines or ["agrees with what is stored."]:
            print(f"{name}: {line}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
