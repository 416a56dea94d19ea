"""Trains the study's runs, and measures each: scores, and looks at the gradients in training."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import osgd_jax
from experiments.app.data import Dataset
from experiments.app.step import State
from experiments.lab.store import Row
from experiments.lab.sweep import Run
from experiments.lab.vectorized import Trained, Trainer
from experiments.studies.anytime.candidates import METHODS, Candidate
from experiments.studies.anytime.problems import PROBLEMS, NetProblem
from experiments.studies.anytime.questions import FRESH, TWO

# Fields of the looks at the gradients that are stored, by stage.
_STORED = {
    "test": ("epoch", "task_cosines", "shared_norm", "private_norm"),
    "look": ("epoch", "stage_cosines"),
}

# How often in a run the gradients are looked at.
_LOOKS = 5

_DIGITS = 4


class AnytimeTraining:
    """Trains runs of the study, for `Sweep.answer`.

    Args:
      load: loads the data of a problem, called when something has to be trained.
      problems: the problems by name.
      methods: the methods by name.
    """

    def __init__(
        self,
        load: Callable[[NetProblem], Dataset],
        problems: dict[str, NetProblem] = PROBLEMS,
        methods: dict[str, Candidate] = METHODS,
    ):
        self._load, self._problems, self._methods = load, problems, methods
        self._observer = functools.lru_cache(1)(self._make_observer)

    def __call__(
        self, problem: str, method: str, stage: str, runs: list[Run]
    ) -> Iterator[list[Row]]:
        """Train the runs; yield the rows of each group that trains together."""
        observer = self._observer(problem, method)
        for group in observer.trainer.groups(runs):
            yield list(_rows(observer, stage, group))

    def _make_observer(self, problem: str, method: str) -> "Observer":
        candidate = self._methods[method]
        longer = lengthened(self._problems[problem], candidate)
        dataset = self._load(self._problems[problem])
        group = len(TWO) * len(candidate.rates)
        return Observer(longer.trainer(dataset, candidate.make(longer), group))


def lengthened(problem: NetProblem, candidate: Candidate) -> NetProblem:
    """Return the problem with as many epochs as the candidate trains for."""
    return dataclasses.replace(problem, epochs=round(candidate.epochs * problem.epochs))


def _rows(observer: "Observer", stage: str, group: list[Run]) -> Iterator[Row]:
    # A group is of first seeds or of fresh ones, but for one that goes on from the former.
    fields = _STORED.get(stage, ()) if any(run.seed not in FRESH for run in group) else ()
    measured = observer.train(group, test=stage == "test", look=bool(fields))
    work = int(observer.trainer.flops()) * observer.trainer.num_steps
    for run, measures in zip(group, measured, strict=True):
        looks = measures.pop("looks", [])
        stored = {field: [look[field] for look in looks] for field in fields}
        key = {"stage": stage, "learning_rate": run.learning_rate, "seed": run.seed}
        extra = {"looks": stored} if stored and run.seed not in FRESH else {}
        yield key | measures | extra | {"work": work}


class Observer:
    """Trains nets, and keeps of each what the study reads.

    Args:
      trainer: trains the nets.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._is_shared = _is_shared(trainer)
        self._look = trainer.over_nets(self._look_one)

    def train(
        self,
        runs: Sequence[Run],
        *,
        test: bool,
        look: bool,
    ) -> list[dict[str, Any]]:
        """Train a group of nets; return what is kept of each.

        Args:
          runs: as many as the trainer's group.
          test: whether to look at the test data.
          look: whether to look at the gradients.
        """
        trainer, looks = self.trainer, []
        look_at = np.unique(np.linspace(0, trainer.epochs - 1, _LOOKS).astype(int)).tolist()

        def watch(epoch: int, state: State, batches: np.ndarray) -> None:
            if look and epoch in look_at:
                looks.append({"epoch": epoch} | self.look(state, batches))

        trained = trainer.train(runs, watch=watch)
        kept = self._scored(trained, test)
        for i, run in enumerate(kept):
            if look:
                run["looks"] = [
                    {k: v if k == "epoch" else _rounded(v[i]) for k, v in each.items()}
                    for each in looks
                ]
        return kept

    def look(self, state: State, batches: np.ndarray) -> dict[str, jax.Array]:
        """Losses, gradients and direction on the first of the batches `[nets, steps, batch]`."""
        return self._look(state, self.trainer.gather(batches))

    def _scored(self, trained: Trained, test: bool) -> list[dict[str, Any]]:
        dataset = self.trainer.dataset
        splits = {"train": dataset.train, "validation": dataset.validation}
        splits |= {"test": dataset.test} if test else {}
        scores = {name: self.trainer.scores(trained, split) for name, split in splits.items()}
        kept = []
        for i in range(len(trained.losses)):
            run = {f"{name}_accuracy": _rounded(each[0][i]) for name, each in scores.items()}
            kept.append(run | {"train_loss": _rounded(scores["train"][1][i])})
        return kept

    def _look_one(self, state: State, batches: tuple[Any, Any]) -> dict[str, jax.Array]:
        trainer, balance = self.trainer, self.trainer.method.balance
        batch = trainer.batch(*jax.tree.map(lambda leaf: leaf[0], batches))
        losses, grads = osgd_jax.value_and_task_grads(trainer.losses)(
            state.params, state.rest, batch
        )
        if balance is None:
            direction = osgd_jax.combine(grads, jnp.ones(len(losses)))
        else:
            direction, _ = balance.update(grads, state.balance, state.params, losses=losses)
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(direction)]
        of_shared = [s for s, shared in zip(squares, self._is_shared, strict=True) if shared]
        of_private = [s for s, shared in zip(squares, self._is_shared, strict=True) if not shared]
        return {
            "losses": jnp.stack(losses),
            "gradient_norms": osgd_jax.task_norms(grads),
            "task_cosines": osgd_jax.task_cosines(osgd_jax.gramian(grads)),
            "stage_cosines": jnp.stack(
                [osgd_jax.task_cosines(osgd_jax.gramian(s)) for s in grads["stages"].values()]
            ),
            "shared_norm": jnp.sqrt(sum(of_shared, jnp.zeros(()))),
            "private_norm": jnp.sqrt(sum(of_private, jnp.zeros(()))),
        }


def _is_shared(trainer: Trainer) -> list[bool]:
    """Whether two or more losses reach each parameter array."""
    _, params, rest = trainer.split_net(0)
    inputs = np.zeros((1, *trainer.dataset.input_shape), np.float32)
    reach = osgd_jax.reach(trainer.losses)(params, rest, trainer.batch(inputs, np.zeros(1, int)))
    tasks = jax.tree.leaves(reach, is_leaf=lambda node: isinstance(node, tuple))
    return [len(each) > 1 for each in tasks]


def _rounded(values: jax.Array) -> Any:
    """Numbers with as many digits as they are worth; null for one that is not finite."""

    def rounded(value: float) -> float | None:
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None

    return jax.tree.map(rounded, np.asarray(values).tolist())
