"""Compiled programs of a run, the state that it starts from, and the states that it saved."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.app import data, growing, methods
from experiments.app.augmentation import prepare
from experiments.app.checkpoints import Checkpoints
from experiments.app.config import RunSettings, TrainConfig
from experiments.app.data_record import read_data
from experiments.app.devices import Placement
from experiments.app.nets import make_net
from experiments.app.step import (
    Batch,
    Conflict,
    Measured,
    Objective,
    State,
    conflict_of,
    evaluated_logits,
    initial_state,
    update,
)
from experiments.app.workdir import read_config
from osgd_jax.nets import AnytimeNet


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled parts of a run.

    Attributes:
      batch_size: examples in a step.
      num_steps: of the whole run.
      steps_per_epoch: number of batches in an epoch.
      initial: the state before the first step.
      schedule: from step to learning rate.
      steps: `(state, source, batches) -> (state, measured)` for one batch or several, `[n, …]`;
        measured `[n, …]`. It uses up the state.
      conflict: `(state, source, batches) -> (gradient_norms, task_cosines)` of the first batch;
        None where `steps` measures them.
      totals: `(state, split, counted) -> (correct, losses)`, `[K]` each, sums over the examples
        that are counted, of the mean over the tokens of a text.
    """

    batch_size: int
    num_steps: int
    steps_per_epoch: int
    initial: State
    schedule: optax.Schedule
    steps: Any
    conflict: Any
    totals: Any

    def measure(
        self, placed: Placement, state: State, examples: data.Examples
    ) -> tuple[list[float], list[float]]:
        """Return the accuracy, a fraction, and the loss of each output on all examples."""
        return accuracies_and_losses(self.totals, self.batch_size, placed, state, examples)


def build(
    config: TrainConfig, dataset: data.Dataset, placed: Placement, net: AnytimeNet
) -> Programs:
    """Make the method and the compiled functions of a run.

    Raises:
      ValueError: settings that do not fit each other or the data.
    """
    run = config.run
    steps_per_epoch = dataset.train.size // run.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size={run.batch_size} exceeds the {dataset.train.size} training examples."
        )
    config.augmentation.check(dataset)
    graphdef, params, rest = growing.split(config, net)
    method = _method(config, dataset)
    rate = schedule(run, steps_per_epoch)
    optimizer = method.optimizer(rate)
    initial = placed.put_state(initial_state(method, optimizer, params, rest, run.seed))
    objective = Objective(run.loss_weights, first=config.frozen)

    def batch_of(state: State, source: Any, batch: Any) -> Batch:
        examples = batch if source is None else source.read(batch)
        key = jax.random.fold_in(state.key, state.step)
        return prepare(dataset, config.augmentation, examples, key)

    def steps(state: State, source: Any, batches: Any) -> tuple[State, Measured]:
        def step(state: State, batch: Any) -> tuple[State, Measured]:
            batch = batch_of(state, source, batch)
            return update(graphdef, objective, method, optimizer, state, batch)

        if len(jax.tree.leaves(batches)[0]) > 1:
            return jax.lax.scan(step, state, batches)
        # On CPU a convolution in a scan takes thirty times as long, even in a scan of length one.
        state, measured = step(state, _first(batches))
        return state, jax.tree.map(lambda leaf: leaf[None], measured)

    def conflict(state: State, source: Any, batches: Any) -> Conflict:
        return conflict_of(graphdef, objective, state, batch_of(state, source, _first(batches)))

    same = placed.everywhere
    _, totals = evaluation(graphdef, dataset)
    return Programs(
        batch_size=run.batch_size,
        num_steps=run.epochs * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        initial=initial,
        schedule=rate,
        steps=jax.jit(steps, donate_argnums=0, out_shardings=(placed.of_state(initial), same)),
        conflict=jax.jit(conflict, out_shardings=same) if method.balance is None else None,
        totals=jax.jit(totals, out_shardings=same),
    )


def _method(config: TrainConfig, dataset: data.Dataset) -> methods.Method:
    settings = config.method
    if dataset.is_text and settings.clip_norm is None:
        settings = dataclasses.replace(settings, clip_norm=1.0)
    trained = config.net.outputs - config.frozen
    return methods.method(settings, num_tasks=trained, seed=config.run.seed, hold=config.held)


def _first(batches: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], batches)


def evaluation(graphdef: Any, dataset: data.Dataset) -> tuple[Callable, Callable]:
    """Make the functions that evaluate a trained state, to be compiled.

    Returns:
      `(state, inputs) -> [K, batch, classes]`, the logits; and `Programs.totals`.
    """

    def logits(state: State, inputs: jax.Array) -> jax.Array:
        each = evaluated_logits(graphdef, state.params, state.rest, dataset.standardise(inputs))
        return jnp.stack(each).astype(jnp.float32)

    def totals(state: State, split: data.Split, counted: jax.Array):
        outputs = logits(state, split.inputs)  # pyright: ignore[reportArgumentType] - traced
        correct = outputs.argmax(-1) == split.labels
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs,
            jnp.broadcast_to(split.labels, outputs.shape[:-1]),
        )
        of_examples = (each.reshape(*outputs.shape[:2], -1).mean(-1) for each in (correct, losses))
        return tuple(jnp.where(counted, each, 0).sum(1) for each in of_examples)

    return logits, totals


class Trained(NamedTuple):
    """A run as one of its checkpoints holds it.

    Attributes:
      config: of the run.
      dataset: what it was trained on, without the examples.
      net: the net with its weights.
      state: of the training.
    """

    config: TrainConfig
    dataset: data.Dataset
    net: AnytimeNet
    state: State


def read_trained(workdir: Path, checkpoint: str = "last") -> Trained:
    """Read the trained net of a run; its data is not needed.

    Args:
      workdir: of the run.
      checkpoint: "last", or "best" by validation accuracy.

    Raises:
      ValueError: no run or no readable checkpoint in the workdir.
    """
    config = read_config(workdir)
    dataset = read_data(workdir)
    net = make_net(config.net, dataset, nnx.Rngs(config.run.seed))
    graphdef, params, rest = growing.split(config, net)
    method = _method(config, dataset)
    optimizer = method.optimizer(schedule(config.run, steps_per_epoch=1))
    example = initial_state(method, optimizer, params, rest, config.run.seed)
    if not (workdir / "checkpoints").is_dir():
        raise ValueError(f"{workdir} has no checkpoint: its folder checkpoints does not exist.")
    checkpoints = Checkpoints(workdir / "checkpoints")
    try:
        state = checkpoints.restore(checkpoint, example)
    finally:
        checkpoints.close()
    return Trained(config, dataset, nnx.merge(graphdef, state.params, state.rest), state)


def accuracies_and_losses(
    totals: Any, batch_size: int, placed: Placement, state: State, examples: data.Examples
) -> tuple[list[float], list[float]]:
    """Return the accuracy, a fraction, and the loss of each output by `Programs.totals`."""
    found = [
        totals(state, placed.put_batch(split), placed.put_batch(counted))
        for split, counted in evaluation_batches(batch_size, examples)
    ]
    correct, losses = (np.sum(jax.device_get(each), axis=0) for each in zip(*found, strict=True))
    return (correct / examples.size).tolist(), (losses / examples.size).tolist()


def evaluation_batches(
    batch_size: int, examples: data.Examples
) -> Iterator[tuple[data.Split, np.ndarray]]:
    """Yield this process's part of equal batches of all examples, and a mask of true examples.

    The last batch is filled up with examples that do not count, so that one program serves all.
    """
    index, count = jax.process_index(), jax.process_count()
    for start in range(0, examples.size, batch_size):
        places = np.split(np.arange(start, start + batch_size), count)[index]
        counted = places < examples.size
        yield examples.read(np.where(counted, places, 0)), counted


def schedule(run: RunSettings, steps_per_epoch: int) -> optax.Schedule:
    """Return the learning rate as a function of the step."""
    warmup = round(run.warmup_epochs * steps_per_epoch)
    rate, left = run.learning_rate, run.epochs * steps_per_epoch - warmup
    if run.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, left)
    elif run.schedule == "step":
        places = {left // 2: 0.1, left * 3 // 4: 0.1}
        main = optax.piecewise_constant_schedule(rate, places)
    else:
        main = optax.constant_schedule(rate)
    if warmup == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
