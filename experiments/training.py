"""Training an anytime net many times over, from seeds and learning rates, compiled once."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import Dataset, Split, epoch_batches
from experiments.methods import Method
from experiments.step import Batch, Objective, State, evaluated_logits, initial_state, update

MakeNet = Callable[[nnx.Rngs], Any]


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


def compile_runs(
    make_net: MakeNet, dataset: Dataset, method: Method, *, epochs: int, batch_size: int
) -> Runs:
    """Make functions that train a net from a seed at a learning rate, compiled only once.

    The learning rate falls to zero along half a cosine. The seed gives the initial parameters and
    the order of the examples, the same for every method.

    Args:
      make_net: from random streams to a net.
      dataset: its training split is trained on; in memory and standardised, as the built-in ones.
      method: how to train.
      epochs: passes over the training examples.
      batch_size: examples in a step.

    Returns:
      The functions that train and test.
    """
    num_steps = epochs * (dataset.train.size // batch_size)
    objective = Objective(output=method.output)

    def split_net(seed: int):
        net = make_net(nnx.Rngs(seed))
        if method.output is not None:
            net = net.subnetwork(method.output)
        return nnx.split(net, nnx.Param, ...)

    graphdef, *_ = split_net(0)
    train_split = jax.device_put(dataset.train)

    def optimizer(learning_rate: jax.Array) -> optax.GradientTransformation:
        schedule = optax.cosine_decay_schedule(learning_rate, num_steps)  # pyright: ignore[reportArgumentType] - traced, so that one program serves all rates
        return method.optimizer(schedule)

    def step(state: State, train: Split, indices: jax.Array, learning_rate: jax.Array):
        targets = jax.nn.one_hot(train.labels[indices], dataset.num_classes)
        batch = Batch(train.inputs[indices], targets)  # pyright: ignore[reportArgumentType] - traced
        state, measured = update(
            graphdef, objective, method, optimizer(learning_rate), state, batch
        )
        return state, measured.losses

    def accuracies(params: Any, rest: Any, split: Split) -> jax.Array:
        logits = evaluated_logits(graphdef, params, rest, split.inputs, method.output)  # pyright: ignore[reportArgumentType] - traced
        return jnp.stack([(each.argmax(-1) == split.labels).mean() for each in logits])

    jitted_step = jax.jit(step, donate_argnums=0)
    jitted_accuracies = jax.jit(accuracies)

    def train(seed: int, learning_rate: float) -> Trained:
        _, params, rest = split_net(seed)
        rate = jnp.float32(learning_rate)
        state = initial_state(method, optimizer(rate), params, rest, seed)
        order, losses = np.random.default_rng(seed), jnp.zeros(())
        for _ in range(epochs):
            for indices in epoch_batches(dataset.train.size, batch_size, order):
                state, losses = jitted_step(state, train_split, indices, rate)
        return Trained(state.params, state.rest, losses.tolist())

    def accuracy(trained: Trained, split: Split) -> list[float]:
        return jitted_accuracies(trained.params, trained.rest, split).tolist()

    return Runs(train, accuracy)
