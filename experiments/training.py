"""Training an anytime net: the step, the loop over the batches, the accuracy of each output."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.data import Dataset, Split, epoch_batches

MakeNet = Callable[[nnx.Rngs], Any]


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train an anytime net.

    Attributes:
      name: as shown in tables.
      optimizer: from a learning-rate schedule to a transformation, of task gradients where
        `balances_tasks`, else of the gradient of the sum of the losses.
      balances_tasks: whether the optimizer takes task gradients.
      output: train this output alone, in the subnetwork that ends with it; all if None.
    """

    name: str
    optimizer: Callable[[optax.ScalarOrSchedule], optax.GradientTransformationExtraArgs]
    balances_tasks: bool = False
    output: int | None = None


class Runs(NamedTuple):
    """What `compile_runs` makes of a method.

    Attributes:
      train: `train(seed, learning_rate) -> Trained`.
      accuracy: `accuracy(trained, split)`, fractions, one for each output that was trained.
    """

    train: Callable[[int, float], "Trained"]
    accuracy: Callable[["Trained", Split], list[float]]


class Trained(NamedTuple):
    """A trained net's parameters and other variables, and the losses of its last step."""

    params: Any
    rest: Any
    final_losses: list[float]


class _State(NamedTuple):
    params: Any
    rest: Any
    optimizer: Any


def compile_runs(
    make_net: MakeNet, dataset: Dataset, method: Method, *, epochs: int, batch_size: int
) -> Runs:
    """Make functions that train a net from a seed at a learning rate, compiled only once.

    The learning rate falls to zero along half a cosine. The seed gives the initial parameters and
    the order of the examples, the same for every method.

    Args:
      make_net: from random streams to a net.
      dataset: its training split is trained on.
      method: how to train.
      epochs: passes over the training examples.
      batch_size: examples in a step.

    Returns:
      The functions that train and test.
    """
    num_steps = epochs * (len(dataset.train.labels) // batch_size)

    def split_net(seed: int):
        net = make_net(nnx.Rngs(seed))
        if method.output is not None:
            net = net.subnetwork(method.output)
        return nnx.split(net, nnx.Param, ...)

    graphdef, *_ = split_net(0)
    train_split = jax.device_put(dataset.train)

    def optimizer(learning_rate: jax.Array) -> optax.GradientTransformationExtraArgs:
        schedule = optax.cosine_decay_schedule(learning_rate, num_steps)  # pyright: ignore[reportArgumentType] - traced, so that one program serves all rates
        return optax.with_extra_args_support(method.optimizer(schedule))

    def losses_of(params: Any, rest: Any, batch: Split):
        net = nnx.merge(graphdef, params, rest, copy=True)
        logits = net(batch.inputs)
        logits = logits if method.output is None else logits[method.output :]
        losses = tuple(
            optax.softmax_cross_entropy_with_integer_labels(each, batch.labels).mean()
            for each in logits
        )
        return losses, nnx.split(net, nnx.Param, ...)[2]

    def step(state: _State, train: Split, indices: jax.Array, learning_rate: jax.Array):
        batch = Split(train.inputs[indices], train.labels[indices])
        if method.balances_tasks:
            (losses, rest), grads = osgd_jax.value_and_task_grads(losses_of, has_aux=True)(
                state.params, state.rest, batch
            )
        else:

            def total_of(params, rest, batch):
                losses, rest = losses_of(params, rest, batch)
                return sum(losses), (losses, rest)

            (_, (losses, rest)), grads = jax.value_and_grad(total_of, has_aux=True)(
                state.params, state.rest, batch
            )
        updates, optimizer_state = optimizer(learning_rate).update(
            grads, state.optimizer, state.params, losses=losses
        )
        params = optax.apply_updates(state.params, updates)
        return _State(params, rest, optimizer_state), jnp.stack(losses)

    def accuracies(params: Any, rest: Any, split: Split) -> jax.Array:
        net = nnx.merge(graphdef, params, rest, copy=True)
        logits = nnx.view(net, use_running_average=True)(split.inputs)
        logits = logits if method.output is None else logits[method.output :]
        return jnp.stack([(each.argmax(-1) == split.labels).mean() for each in logits])

    jitted_step = jax.jit(step, donate_argnums=0)
    jitted_accuracies = jax.jit(accuracies)

    def train(seed: int, learning_rate: float) -> Trained:
        _, params, rest = split_net(seed)
        rate = jnp.float32(learning_rate)
        state = _State(params, rest, optimizer(rate).init(params))
        order, losses = np.random.default_rng(seed), jnp.zeros(())
        for _ in range(epochs):
            for indices in epoch_batches(len(dataset.train.labels), batch_size, order):
                state, losses = jitted_step(state, train_split, indices, rate)
        return Trained(state.params, state.rest, losses.tolist())

    def accuracy(trained: Trained, split: Split) -> list[float]:
        return jitted_accuracies(trained.params, trained.rest, split).tolist()

    return Runs(train, accuracy)
