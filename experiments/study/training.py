"""Trains nets in groups, each from a seed and at a learning rate of its own."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.data import Dataset, Split, epoch_batches
from experiments.methods import Method
from experiments.step import (
    Batch,
    Objective,
    State,
    evaluated_logits,
    initial_state,
    logits_of,
    update,
)
from experiments.study.problems import Problem

# How often in a run the gradients are looked at.
_LOOKS = 5

_DIGITS = 4


class Run(NamedTuple):
    """One net to train."""

    seed: int
    learning_rate: float


class Trainer:
    """Trains nets on a problem by one method, all in programs that are compiled once.

    Sequences are trained many nets at a time, by `vmap` over nets and `lax.scan` over the steps of
    an epoch; images one by one, since convolutions are slow in both on CPU.

    Args:
      problem: what to train.
      dataset: of the problem, in memory.
      method: how to train.
      group: nets at a time, for sequences.
    """

    def __init__(self, problem: Problem, dataset: Dataset, method: Method, group: int):
        self.problem, self.dataset, self.method = problem, dataset, method
        self.group = group if problem.is_sequence else 1
        self.num_steps = problem.epochs * (dataset.train.size // problem.batch_size)
        self.objective = Objective(output=method.output)
        self.graphdef, params, rest = self._split_net(0)
        self.is_shared = self._is_shared(params, rest)
        self._start = self._over_nets(self._start_one)
        self._step = self._over_nets(self._steps_one, donate=True)
        self._look = self._over_nets(self._look_one)
        self._scores = self._over_nets(self._scores_one)

    def train(
        self, runs: Sequence[Run], *, test: bool, advance: Callable[[], None] = lambda: None
    ) -> list[dict[str, Any]]:
        """Train nets; return what is kept of each.

        Args:
          runs: seed and learning rate of each; as many as `group`.
          test: whether to look at the test data.
          advance: called after each epoch.
        """
        state, rates = self._initial(runs)
        orders = [np.random.default_rng(run.seed) for run in runs]
        train, batch_size = self.dataset.train, self.problem.batch_size
        looks = []
        look_at = np.unique(np.linspace(0, self.problem.epochs - 1, _LOOKS).astype(int))
        for epoch in range(self.problem.epochs):
            batches = np.stack([epoch_batches(train.size, batch_size, order) for order in orders])
            if epoch in look_at:
                looks.append(self._look(state, self._gather(batches[:, :1])))
            for part in self._parts(batches):
                state = self._step(state, self._gather(part), rates)
            advance()
        return self._kept(state, looks, look_at.tolist(), test)

    def stepper(self) -> Callable[[], Any]:
        """A function that trains on one part of an epoch, each time from where it ended before."""
        state, rates = self._initial([Run(seed=0, learning_rate=0.1)] * self.group)
        order = np.random.default_rng(0)
        batches = epoch_batches(self.dataset.train.size, self.problem.batch_size, order)
        part = self._gather(self._parts(np.stack([batches] * self.group))[0])

        def step() -> State:
            nonlocal state
            state = self._step(state, part, rates)
            return state

        return step

    def flops(self) -> float:
        """Floating-point operations of one net's step, counted before compilation."""
        params, rest = self._split_net(0)[1:]
        rate = jnp.float32(0.1)
        state = jax.eval_shape(self._start_one, (params, rest), jnp.int32(0), rate)
        shape = (1, self.problem.batch_size, *self.dataset.input_shape)
        batch = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], jnp.int32)
        lowered = jax.jit(self._steps_one).lower(state, batch, rate)
        return lowered.cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript] - XLA always counts

    def _initial(self, runs: Sequence[Run]) -> tuple[State, jax.Array]:
        rates = jnp.array([run.learning_rate for run in runs], jnp.float32)
        seeds = jnp.array([run.seed for run in runs])
        nets = [self._split_net(run.seed)[1:] for run in runs]
        nets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
        return self._start(nets, seeds, rates), rates

    def _kept(
        self, state: State, looks: list[Any], look_at: list[int], test: bool
    ) -> list[dict[str, Any]]:
        splits = {"train": self.dataset.train, "validation": self.dataset.validation}
        splits |= {"test": self.dataset.test} if test else {}
        scores = {name: self._scores(state, self._everything(s)) for name, s in splits.items()}
        kept = []
        for i in range(self.group):
            run: dict[str, Any] = {}
            for name, (accuracy, loss) in scores.items():
                run[f"{name}_accuracy"] = _rounded(accuracy[i])
                if name == "train":
                    run["train_loss"] = _rounded(loss[i])
            run["looks"] = [
                {"epoch": epoch} | {name: _rounded(value[i]) for name, value in look.items()}
                for epoch, look in zip(look_at, looks, strict=True)
            ]
            kept.append(run)
        return kept

    def _split_net(self, seed: int) -> Any:
        net = self.problem.make(self.dataset, seed)
        if self.method.output is not None:
            net = net.subnetwork(self.method.output)
        return nnx.split(net, nnx.Param, ...)

    def _over_nets(self, function: Callable, donate: bool = False) -> Callable:
        """The function for a leading axis of nets."""
        if self.problem.is_sequence:
            many = jax.vmap(function)
        else:

            def many(*args: Any):
                result = function(*jax.tree.map(lambda leaf: leaf[0], args))
                return jax.tree.map(lambda leaf: leaf[None], result)

        return jax.jit(many, donate_argnums=0 if donate else ())

    def _parts(self, batches: np.ndarray) -> list[np.ndarray]:
        """An epoch's batches `[nets, steps, batch]`, cut into what one call trains on."""
        if self.problem.is_sequence:
            return [batches]
        return np.split(batches, batches.shape[1], axis=1)

    def _gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        train = self.dataset.train
        return train.inputs[indices], train.labels[indices]

    def _everything(self, split: Split) -> tuple[np.ndarray, np.ndarray]:
        copies = (self.group, *split.inputs.shape)
        return np.broadcast_to(split.inputs, copies), np.broadcast_to(split.labels, copies[:2])

    def _optimizer(self, rate: jax.Array) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(rate, self.num_steps)  # pyright: ignore[reportArgumentType] - traced
        return self.method.optimizer(schedule)

    def _start_one(self, net: Any, seed: jax.Array, rate: jax.Array) -> State:
        params, rest = net
        return initial_state(self.method, self._optimizer(rate), params, rest, seed)  # pyright: ignore[reportArgumentType] - traced

    def _steps_one(self, state: State, batches: tuple[Any, Any], rate: jax.Array) -> State:
        optimizer = self._optimizer(rate)

        def step(state: State, batch: tuple[Any, Any]) -> tuple[State, None]:
            one = self._batch(*batch)
            taken = update(self.graphdef, self.objective, self.method, optimizer, state, one)
            return taken[0], None

        if self.problem.is_sequence:
            return jax.lax.scan(step, state, batches)[0]
        return step(state, jax.tree.map(lambda leaf: leaf[0], batches))[0]

    def _batch(self, inputs: Any, labels: Any) -> Batch:
        return Batch(inputs, jax.nn.one_hot(labels, self.dataset.num_classes))

    def _losses(self, params: Any, rest: Any, batch: Batch) -> tuple[jax.Array, ...]:
        logits, _ = logits_of(self.graphdef, params, rest, batch.inputs, self.method.output)
        return self.objective.losses(logits, batch.targets)

    def _is_shared(self, params: Any, rest: Any) -> list[bool]:
        shape = (1, *self.dataset.input_shape)
        batch = self._batch(np.zeros(shape, np.float32), np.zeros(1, np.int32))
        reach = osgd_jax.reach(self._losses)(params, rest, batch)
        tasks = jax.tree.leaves(reach, is_leaf=lambda node: isinstance(node, tuple))
        return [len(each) > 1 for each in tasks]

    def _look_one(self, state: State, batches: tuple[Any, Any]) -> dict[str, jax.Array]:
        """Losses, gradients and the direction on a batch; training goes on as if not done."""
        batch = self._batch(*jax.tree.map(lambda leaf: leaf[0], batches))
        losses, grads = osgd_jax.value_and_task_grads(self._losses)(state.params, state.rest, batch)
        if self.method.balance is None:
            direction = osgd_jax.combine(grads, jnp.ones(len(losses)))
        else:
            direction, _ = self.method.balance.update(
                grads, state.balance, state.params, losses=losses
            )
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(direction)]
        of_shared = [s for s, shared in zip(squares, self.is_shared, strict=True) if shared]
        of_private = [s for s, shared in zip(squares, self.is_shared, strict=True) if not shared]
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

    def _scores_one(self, state: State, examples: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        """Accuracy and loss of each output that was trained, with running averages."""
        inputs, labels = examples
        logits = evaluated_logits(
            self.graphdef, state.params, state.rest, inputs, self.method.output
        )
        accuracy = jnp.stack([(each.argmax(-1) == labels).mean() for each in logits])
        losses = self.objective.losses(logits, self._batch(inputs, labels).targets)
        return accuracy, jnp.stack(losses)


def _rounded(values: jax.Array) -> Any:
    """Numbers with as many digits as they are worth; null for one that is not finite."""

    def rounded(value: float) -> float | None:
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None

    return jax.tree.map(rounded, np.asarray(values).tolist())
