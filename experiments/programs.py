"""What a training run compiles, and the state it starts from."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments import data, methods, nets
from experiments.augmentation import Augmentation, prepare
from experiments.config import Config
from experiments.devices import Placement
from experiments.step import (
    Measured,
    Objective,
    State,
    conflict_of,
    evaluated_logits,
    initial_state,
    update,
)


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled parts of a run.

    Attributes:
      num_steps: of the whole run.
      steps_per_epoch: number of batches in an epoch.
      costs: parameters and multiply-adds up to each output.
      initial: the state before the first step.
      schedule: from step to learning rate.
      step: `(state, source, batch) -> (state, measured)`; it uses up the state.
      steps: the same for several batches at once, `[n, …]`, measured `[n, …]`.
      conflict: `(state, source, batch) -> task_cosines`, where `step` does not measure them.
      logits: `(state, inputs) -> [K, batch, classes]`, of the trained net.
      totals: `(state, split, counted) -> (correct, losses)`, `[K]` each, sums over the examples
        that are counted.
    """

    num_steps: int
    steps_per_epoch: int
    costs: list[osgd_jax.OutputCost]
    initial: State
    schedule: optax.Schedule
    step: Any
    steps: Any
    conflict: Any
    logits: Any
    totals: Any


def build(config: Config, dataset: data.Dataset, placed: Placement) -> Programs:
    """Make the net, the method and the compiled functions of a run.

    Raises:
      ValueError: settings that do not fit each other or the data.
    """
    steps_per_epoch = dataset.train.size // config.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"batch_size={config.batch_size} exceeds the {dataset.train.size} training examples."
        )
    images = ("pad_crop", "flip", "cutout", "resized_crop")
    if len(dataset.input_shape) != 3 and any(getattr(config, field) for field in images):
        raise ValueError(f"{', '.join(images)} are for images; {dataset.name} has none.")
    num_steps = config.epochs * steps_per_epoch
    net = nets.make_net(
        config.net,
        dataset,
        num_outputs=config.outputs,
        rngs=nnx.Rngs(config.seed),
        widths=config.widths,
        blocks=config.blocks,
        norm=config.norm,
        stem=config.stem,
        dtype=None if config.precision == "float32" else jnp.dtype(config.precision),
    )
    costs = osgd_jax.cost(net, dataset.input_shape)
    graphdef, params, rest = nnx.split(net, nnx.Param, ...)
    method = methods.method(
        config.optimizer,
        momentum=config.momentum,
        scope=config.scope,
        order=config.order,
        weight_decay=config.weight_decay,
        clip_norm=config.clip_norm,
        num_tasks=config.outputs,
        seed=config.seed,
    )
    schedule = _schedule(config, num_steps, steps_per_epoch)
    optimizer = method.optimizer(schedule)
    initial = placed.put_state(initial_state(method, optimizer, params, rest, config.seed))
    objective = Objective(config.distillation, config.temperature, config.loss_weights)
    augmentation = Augmentation(
        **{each.name: getattr(config, each.name) for each in dataclasses.fields(Augmentation)}
    )

    def batch_of(state: State, source: Any, batch: Any):
        examples = batch if source is None else source.read(batch)
        key = jax.random.fold_in(state.key, state.step)
        return prepare(dataset, augmentation, examples, key)

    def step(state: State, source: Any, batch: Any) -> tuple[State, Measured]:
        return update(graphdef, objective, method, optimizer, state, batch_of(state, source, batch))

    def steps(state: State, source: Any, batches: Any) -> tuple[State, Measured]:
        return jax.lax.scan(lambda state, batch: step(state, source, batch), state, batches)

    def conflict(state: State, source: Any, batch: Any) -> jax.Array:
        return conflict_of(graphdef, objective, state, batch_of(state, source, batch))

    def logits(state: State, inputs: jax.Array) -> jax.Array:
        each = evaluated_logits(graphdef, state.params, state.rest, dataset.standardise(inputs))
        return jnp.stack(each).astype(jnp.float32)

    def totals(state: State, split: data.Split, counted: jax.Array):
        outputs = logits(state, split.inputs)  # pyright: ignore[reportArgumentType] - traced
        correct = (outputs.argmax(-1) == split.labels) & counted
        losses = optax.softmax_cross_entropy_with_integer_labels(
            outputs,
            jnp.broadcast_to(split.labels, outputs.shape[:-1]),
        )
        return correct.sum(1), jnp.where(counted, losses, 0).sum(1)

    same = placed.everywhere
    compiled = functools.partial(
        jax.jit, donate_argnums=0, out_shardings=(placed.of_state(initial), same)
    )
    return Programs(
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        costs=costs,
        initial=initial,
        schedule=schedule,
        step=compiled(step),
        steps=compiled(steps),
        conflict=jax.jit(conflict, out_shardings=same) if method.balance is None else None,
        logits=jax.jit(logits),
        totals=jax.jit(totals, out_shardings=same),
    )


def evaluate(
    programs: Programs, placed: Placement, config: Config, state: State, examples: Any
) -> tuple[list[float], list[float]]:
    """Accuracy (a fraction) and loss of each output on all of `examples`."""
    totals = [
        programs.totals(state, placed.put_batch(split), placed.put_batch(counted))
        for split, counted in evaluation_batches(config.batch_size, examples)
    ]
    correct, losses = (np.sum(jax.device_get(each), axis=0) for each in zip(*totals, strict=True))
    return (correct / examples.size).tolist(), (losses / examples.size).tolist()


def evaluation_batches(
    batch_size: int, examples: data.Examples
) -> Iterator[tuple[data.Split, np.ndarray]]:
    """The process's part of equal batches of all examples in order, and which of them count.

    The last batch is filled up with examples that do not count, so that one program serves all.
    """
    index, count = jax.process_index(), jax.process_count()
    for start in range(0, examples.size, batch_size):
        places = np.split(np.arange(start, start + batch_size), count)[index]
        counted = places < examples.size
        yield examples.read(np.where(counted, places, 0)), counted


def _schedule(config: Config, num_steps: int, steps_per_epoch: int) -> optax.Schedule:
    warmup = round(config.warmup_epochs * steps_per_epoch)
    rate, left = config.learning_rate, num_steps - warmup
    if config.schedule == "cosine":
        main = optax.cosine_decay_schedule(rate, left)
    elif config.schedule == "step":
        places = {left // 2: 0.1, left * 3 // 4: 0.1}
        main = optax.piecewise_constant_schedule(rate, places)
    else:
        main = optax.constant_schedule(rate)
    if warmup == 0:
        return main
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), main], [warmup])
