"""Train nets, each with a seed and a learning rate, in programs compiled once."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.app.data import Dataset, Split, epoch_batches
from experiments.app.methods import Method
from experiments.app.step import (
    Batch,
    Objective,
    State,
    batch_accuracies,
    evaluated_logits,
    initial_state,
    logits_of,
    update,
)
from experiments.lab.store import Row
from experiments.lab.sweep import Run

MakeNet = Callable[[nnx.Rngs], Any]


class Trained(NamedTuple):
    """Nets that were trained together.

    Attributes:
      state: after the last step, with a leading axis of nets.
      losses: of the last step, `[nets, K]`.
    """

    state: State
    losses: jax.Array


class Trainer:
    """Trains nets by one method; the learning rate falls to zero along half a cosine.

    The seed gives the initial parameters and the order of the examples, the same for every method.
    Where convolutions allow, many nets are trained at a time, by `vmap` over nets and `lax.scan`
    over the steps of an epoch; two-dimensional ones are slow in both on CPU, and their nets are
    trained one by one.

    Args:
      make_net: from random streams to a net.
      dataset: in memory and standardised, as the built-in ones.
      method: how to train.
      epochs: passes over the training examples.
      batch_size: examples in a step.
      group: nets at a time, where many can be.

    Raises:
      ValueError: fewer training examples than a batch has.
    """

    def __init__(
        self,
        make_net: MakeNet,
        dataset: Dataset,
        method: Method,
        *,
        epochs: int,
        batch_size: int,
        group: int = 1,
    ):
        size = dataset.train.size
        if batch_size > size:
            raise ValueError(f"batch_size={batch_size} exceeds the {size} training examples.")
        self.make_net, self.dataset, self.method = make_net, dataset, method
        self.epochs, self.batch_size = epochs, batch_size
        is_sequence = len(dataset.input_shape) == 2
        self.many_at_a_time = is_sequence or jax.default_backend() != "cpu"
        self.group = group if self.many_at_a_time else 1
        self.num_steps = epochs * (size // batch_size)
        self.objective = Objective(output=method.output)
        self.graphdef, *_ = self.split_net(0)
        self._start = self.over_nets(self._start_one)
        self.steps = self.over_nets(self._steps_one, donate=True)
        self._scores = self.over_nets(self._scores_one)

    def groups(self, runs: Sequence[Run]) -> Iterator[list[Run]]:
        """The runs in groups of one size; the last is filled up by repeating its last run."""
        for start in range(0, len(runs), self.group):
            part = list(runs[start : start + self.group])
            yield part + [part[-1]] * (self.group - len(part))

    def train(
        self,
        runs: Sequence[Run],
        *,
        watch: Callable[[int, State, Any], None] = lambda epoch, state, batches: None,
        advance: Callable[[], None] = lambda: None,
    ) -> Trained:
        """Train a group of nets.

        Args:
          runs: seed and learning rate of each; as many as `group`.
          watch: called before each epoch with its number, the state, and its first batches.
          advance: called after each epoch.
        """
        state, rates = self.start(runs)
        orders = [np.random.default_rng(run.seed) for run in runs]
        losses = jnp.zeros((len(runs), 1))
        for epoch in range(self.epochs):
            batches = np.stack(
                [epoch_batches(self.dataset.train.size, self.batch_size, order) for order in orders]
            )
            watch(epoch, state, batches[:, :1])
            for part in self._parts(batches):
                state, losses = self.steps(state, self.gather(part), rates)
            advance()
        return Trained(state, losses)

    def scores(self, trained: Trained, split: Split) -> tuple[np.ndarray, np.ndarray]:
        """Accuracy and loss of each output that was trained on a split, `[nets, K]` each."""
        nets = len(trained.losses)
        inputs = np.broadcast_to(split.inputs, (nets, *split.inputs.shape))
        labels = np.broadcast_to(split.labels, (nets, *split.labels.shape))
        return jax.device_get(self._scores(trained.state, (inputs, labels)))

    def stepper(self) -> Callable[[], Any]:
        """A function that trains on one part of an epoch, each time from where it ended before."""
        state, rates = self.start([Run(seed=0, learning_rate=0.1)] * self.group)
        order = np.random.default_rng(0)
        batches = epoch_batches(self.dataset.train.size, self.batch_size, order)
        part = self.gather(self._parts(np.stack([batches] * self.group))[0])

        def step() -> State:
            nonlocal state
            state, _ = self.steps(state, part, rates)
            return state

        return step

    def flops(self) -> float:
        """Floating-point operations of one net's step, counted before compilation."""
        params, rest = self.split_net(0)[1:]
        rate = jnp.float32(0.1)
        state = jax.eval_shape(self._start_one, (params, rest), jnp.int32(0), rate)
        batch = tuple(
            jax.ShapeDtypeStruct((1, self.batch_size, *each.shape[1:]), each.dtype)
            for each in self.dataset.train
        )
        lowered = jax.jit(self._steps_one).lower(state, batch, rate)
        return lowered.cost_analysis()["flops"]  # pyright: ignore[reportOptionalSubscript] - XLA always counts

    def start(self, runs: Sequence[Run]) -> tuple[State, jax.Array]:
        """The state before the first step, with a leading axis of nets, and their rates."""
        rates = jnp.array([run.learning_rate for run in runs], jnp.float32)
        seeds = jnp.array([run.seed for run in runs])
        nets = [self.split_net(run.seed)[1:] for run in runs]
        nets = jax.tree.map(lambda *leaves: jnp.stack(leaves), *nets)
        return self._start(nets, seeds, rates), rates

    def split_net(self, seed: int) -> Any:
        """Graph, parameters and other variables of the net that is trained."""
        net = self.make_net(nnx.Rngs(seed))
        if self.method.output is not None:
            net = net.subnetwork(self.method.output)
        return nnx.split(net, nnx.Param, ...)

    def over_nets(self, function: Callable, donate: bool = False) -> Callable:
        """A function of one net, compiled for a leading axis of nets."""
        if self.many_at_a_time:
            many = jax.vmap(function)
        else:

            def many(*args: Any):
                result = function(*self.alone(args))
                return jax.tree.map(lambda leaf: leaf[None], result)

        return jax.jit(many, donate_argnums=0 if donate else ())

    @staticmethod
    def alone(nets: Any) -> Any:
        """The first of some nets, without their axis."""
        return jax.tree.map(lambda leaf: leaf[0], nets)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Training examples and their labels."""
        train = self.dataset.train
        return train.inputs[indices], train.labels[indices]

    def batch(self, inputs: Any, labels: Any) -> Batch:
        """Examples as a step takes them."""
        return Batch(inputs, jax.nn.one_hot(labels, self.dataset.num_classes))

    def losses(self, params: Any, rest: Any, batch: Batch) -> tuple[jax.Array, ...]:
        """Return the loss of each trained output, in training mode."""
        logits, _ = logits_of(self.graphdef, params, rest, batch.inputs, self.method.output)
        return self.objective.losses(logits, batch.targets)

    def _parts(self, batches: np.ndarray) -> list[np.ndarray]:
        """An epoch's batches `[nets, steps, batch]`, cut into what one call trains on."""
        if self.many_at_a_time:
            return [batches]
        return np.split(batches, batches.shape[1], axis=1)

    def optimizer(self, rate: jax.Array) -> optax.GradientTransformation:
        """The method's, at a rate that falls from this one."""
        schedule = optax.cosine_decay_schedule(rate, self.num_steps)  # pyright: ignore[reportArgumentType] - traced, so that one program serves all rates
        return self.method.optimizer(schedule)

    def _start_one(self, net: Any, seed: jax.Array, rate: jax.Array) -> State:
        params, rest = net
        return initial_state(self.method, self.optimizer(rate), params, rest, seed)  # pyright: ignore[reportArgumentType] - traced

    def step(
        self, state: State, examples: tuple[Any, Any], rate: jax.Array
    ) -> tuple[State, jax.Array]:
        """The state of one net after a batch, and the losses before it."""
        batch, optimizer = self.batch(*examples), self.optimizer(rate)
        state, measured = update(
            self.graphdef, self.objective, self.method, optimizer, state, batch
        )
        return state, measured.losses

    def _steps_one(
        self, state: State, batches: tuple[Any, Any], rate: jax.Array
    ) -> tuple[State, jax.Array]:
        if not self.many_at_a_time:
            return self.step(state, self.alone(batches), rate)
        state, losses = jax.lax.scan(
            lambda state, batch: self.step(state, batch, rate), state, batches
        )
        return state, losses[-1]

    def _scores_one(self, state: State, examples: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        inputs, labels = examples
        logits = evaluated_logits(
            self.graphdef, state.params, state.rest, inputs, self.method.output
        )
        losses = self.objective.losses(logits, self.batch(inputs, labels).targets)
        return batch_accuracies(logits, labels), jnp.stack(losses)


class Training:
    """Trains runs for `Sweep.answer` in groups, by a trainer for each problem and method.

    Args:
      make_trainer: from the names of a problem and a method to their trainer.
      measure: from a trainer, its trained nets and the stage to the measures of each net; the
        default is accuracy, on validation data for "tune" and else on test data.
      advance: called with the method's name after each epoch of a group.
    """

    def __init__(
        self,
        make_trainer: Callable[[str, str], Trainer],
        measure: Callable[[Trainer, Trained, str], list[Row]] | None = None,
        advance: Callable[[str], None] = lambda method: None,
    ):
        self._trainer = functools.cache(make_trainer)
        self._measure, self._advance = measure or accuracy_of, advance

    def __call__(
        self, problem: str, method: str, stage: str, runs: list[Run]
    ) -> Iterator[list[Row]]:
        """Train the runs; yield the rows of each group."""
        trainer = self._trainer(problem, method)
        for group in trainer.groups(runs):
            trained = trainer.train(group, advance=lambda: self._advance(method))
            measures = self._measure(trainer, trained, stage)
            yield [
                run._asdict() | {"stage": stage} | each
                for run, each in zip(group, measures, strict=True)
            ]


def accuracy_of(trainer: Trainer, trained: Trained, stage: str) -> list[Row]:
    """Return the accuracies of each net, on validation data for "tune" and else on test data."""
    split = trainer.dataset.validation if stage == "tune" else trainer.dataset.test
    return [{"accuracy": each.tolist()} for each in trainer.scores(trained, split)[0]]
