"""One step of training: losses of all outputs, one update, what is measured on the way."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import osgd_jax
from experiments.app.methods import Method


class Batch(NamedTuple):
    """Inputs as the net takes them, and a distribution over the classes for each example."""

    inputs: jax.Array
    targets: jax.Array


class State(NamedTuple):
    """State of a training, which changes at every step.

    Attributes:
      step: number of steps done.
      key: random key of the run; each step folds its number in.
      params: trained parameters.
      rest: the net's other variables, such as batch statistics.
      balance: state of the method's `balance`.
      optimizer: state of the method's `optimizer`.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    rest: Any
    balance: Any
    optimizer: Any


class Measured(NamedTuple):
    """Measures of a step.

    Attributes:
      losses: of each output, before weights, `[K]`.
      accuracies: of each output on the batch, `[K]`.
      gradient_norms: of the gradient of each output that is trained; None without task gradients.
      task_cosines: of the angles between these gradients; None without task gradients.
    """

    losses: jax.Array
    accuracies: jax.Array
    gradient_norms: jax.Array | None = None
    task_cosines: jax.Array | None = None


# Norms of the losses' gradients, `[K]`, and cosines between them, `[K, K]`.
Conflict = tuple[jax.Array, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses.

    Attributes:
      loss_weights: factor of each loss; all 1 if None.
      output: train this output alone; all if None.
      first: outputs before this one are not trained.
    """

    loss_weights: tuple[float, ...] | None = None
    output: int | None = None
    first: int = 0

    def losses(self, logits: tuple[jax.Array, ...], targets: jax.Array) -> tuple[jax.Array, ...]:
        """Return the loss of each output, before weights."""
        return tuple(
            optax.softmax_cross_entropy(each.astype(jnp.float32), targets).mean() for each in logits
        )

    def weighted(self, losses: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Return the losses that are trained, times their weights."""
        if self.loss_weights is not None:
            pairs = zip(self.loss_weights, losses, strict=True)
            losses = tuple(weight * each for weight, each in pairs)
        return losses[self.first :]


def logits_of(graphdef: Any, params: Any, rest: Any, inputs: jax.Array, output: int | None):
    """Return the logits in training mode, and the other variables after the call."""
    net = nnx.merge(graphdef, params, rest, copy=True)
    logits = net(inputs)
    trained = frozenset(nnx.to_flat_state(params).paths)
    changed = nnx.state(net, lambda path, _: path not in trained)
    return logits if output is None else logits[output:], changed


def evaluated_logits(
    graphdef: Any, params: Any, rest: Any, inputs: jax.Array, output: int | None = None
) -> tuple[jax.Array, ...]:
    """Return the logits with running averages in place of batch statistics."""
    net = nnx.merge(graphdef, params, rest, copy=True)
    logits = nnx.view(net, use_running_average=True)(inputs)
    return logits if output is None else logits[output:]


def batch_accuracies(logits: Sequence[jax.Array], labels: jax.Array) -> jax.Array:
    """Return the share of right predictions of each output, `[K]`."""
    return jnp.stack([(each.argmax(-1) == labels).mean() for each in logits])


def initial_state(method: Method, optimizer: Any, params: Any, rest: Any, seed: int) -> State:
    """Return the state before the first step."""
    balance = None if method.balance is None else method.balance.init(params)
    key = jax.random.key(seed)
    return State(jnp.int32(0), key, params, rest, balance, optimizer.init(params))


def update(
    graphdef: Any,
    objective: Objective,
    method: Method,
    optimizer: optax.GradientTransformation,
    state: State,
    batch: Batch,
) -> tuple[State, Measured]:
    """Take one step.

    Args:
      graphdef: of the net.
      objective: the losses.
      method: how the losses' gradients become one.
      optimizer: the method's, at its schedule.
      state: before the step.
      batch: what to train on.

    Returns:
      The state after the step, and the measures at the parameters before it.
    """

    def losses_of(params: Any):
        logits, rest = logits_of(graphdef, params, state.rest, batch.inputs, objective.output)
        losses = objective.losses(logits, batch.targets)
        return objective.weighted(losses), (losses, logits, rest)

    if method.balance is None:

        def total_of(params: Any):
            weighted, aux = losses_of(params)
            return sum(weighted), aux

        (_, (losses, logits, rest)), gradient = jax.value_and_grad(total_of, has_aux=True)(
            state.params
        )
        balance, conflict = None, ()
    else:
        (weighted, (losses, logits, rest)), grads = osgd_jax.value_and_task_grads(
            losses_of, has_aux=True
        )(state.params)
        gradient, balance = method.balance.update(
            grads, state.balance, state.params, losses=weighted
        )
        conflict = _conflict(grads)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    labels = batch.targets.argmax(-1)
    measured = Measured(jnp.stack(losses), batch_accuracies(logits, labels), *conflict)
    return State(state.step + 1, state.key, params, rest, balance, optimizer_state), measured


def conflict_of(graphdef: Any, objective: Objective, state: State, batch: Batch) -> Conflict:
    """Return norms and cosines of the losses' gradients, for methods that do not compute them."""

    def losses_of(params: Any):
        logits, _ = logits_of(graphdef, params, state.rest, batch.inputs, objective.output)
        return objective.losses(logits, batch.targets)[objective.first :]

    return _conflict(osgd_jax.task_grads(losses_of)(state.params))


def _conflict(grads: Any) -> Conflict:
    gramian = osgd_jax.gramian(grads)
    return jnp.sqrt(jnp.diagonal(gramian)), osgd_jax.task_cosines(gramian)
