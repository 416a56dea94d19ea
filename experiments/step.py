"""One step of training: losses of all outputs, one update, what is measured on the way."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import osgd_jax
from experiments.methods import Method


class Batch(NamedTuple):
    """Inputs as the net takes them, and a distribution over the classes for each example."""

    inputs: jax.Array
    targets: jax.Array


class State(NamedTuple):
    """All that changes from step to step.

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
    """What a step measures.

    Attributes:
      losses: of each output, before weights, `[K]`.
      accuracies: of each output on the batch, `[K]`.
      gradient_norms: of each output's gradient, `[K]`; None without task gradients.
      task_cosines: of the angles between the gradients, `[K, K]`; None without task gradients.
      task_weights: of the gradients in the direction over the shared parameters, `[K]`; None
        without task gradients.
    """

    losses: jax.Array
    accuracies: jax.Array
    gradient_norms: jax.Array | None = None
    task_cosines: jax.Array | None = None
    task_weights: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """The losses.

    Attributes:
      distillation: share of each earlier output's loss that pulls it to the last output's
        predictions, which it does not move (self-distillation, Zhang et al. 2019,
        arXiv 1905.08094); 0 for none.
      temperature: of the predictions in distillation.
      loss_weights: what each loss is multiplied with; all 1 if None.
      output: train this output alone; all if None.
    """

    distillation: float = 0.0
    temperature: float = 3.0
    loss_weights: tuple[float, ...] | None = None
    output: int | None = None

    def losses(self, logits: tuple[jax.Array, ...], targets: jax.Array) -> tuple[jax.Array, ...]:
        """The loss of each output, before weights."""
        logits = tuple(each.astype(jnp.float32) for each in logits)
        losses = [optax.softmax_cross_entropy(each, targets).mean() for each in logits]
        if self.distillation:
            teacher = jax.nn.softmax(jax.lax.stop_gradient(logits[-1]) / self.temperature)
            for k, each in enumerate(logits[:-1]):
                student = jax.nn.log_softmax(each / self.temperature)
                divergence = optax.kl_divergence(student, teacher).mean() * self.temperature**2
                losses[k] = (1 - self.distillation) * losses[k] + self.distillation * divergence
        return tuple(losses)

    def weighted(self, losses: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """The losses times their weights."""
        if self.loss_weights is None:
            return losses
        return tuple(w * each for w, each in zip(self.loss_weights, losses, strict=True))


def logits_of(graphdef: Any, params: Any, rest: Any, inputs: jax.Array, output: int | None):
    """The logits of the outputs in training mode, and the other variables after it."""
    net = nnx.merge(graphdef, params, rest, copy=True)
    logits = net(inputs)
    return logits if output is None else logits[output:], nnx.split(net, nnx.Param, ...)[2]


def evaluated_logits(
    graphdef: Any, params: Any, rest: Any, inputs: jax.Array, output: int | None = None
) -> tuple[jax.Array, ...]:
    """The logits of the outputs with running averages in place of batch statistics."""
    net = nnx.merge(graphdef, params, rest, copy=True)
    logits = nnx.view(net, use_running_average=True)(inputs)
    return logits if output is None else logits[output:]


def initial_state(method: Method, optimizer: Any, params: Any, rest: Any, seed: int) -> State:
    """The state before the first step."""
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
      The state after the step and what was measured, at the parameters before it.
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
        conflict = _conflict(grads, gradient)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    labels = batch.targets.argmax(-1)
    accuracies = jnp.stack([(each.argmax(-1) == labels).mean() for each in logits])
    measured = Measured(jnp.stack(losses), accuracies, *conflict)
    return State(state.step + 1, state.key, params, rest, balance, optimizer_state), measured


def conflict_of(graphdef: Any, objective: Objective, state: State, batch: Batch) -> jax.Array:
    """Cosines between the losses' gradients, `[K, K]`, for methods that do not compute these."""

    def losses_of(params: Any):
        logits, _ = logits_of(graphdef, params, state.rest, batch.inputs, objective.output)
        return objective.losses(logits, batch.targets)

    return osgd_jax.task_cosines(osgd_jax.gramian(osgd_jax.task_grads(losses_of)(state.params)))


def _conflict(grads: Any, direction: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Norms and cosines of the task gradients, and their weights in the direction."""
    gramian = osgd_jax.gramian(grads)
    rows = jax.tree.leaves(grads, is_leaf=lambda node: isinstance(node, osgd_jax.TaskRows))
    pairs = zip(rows, jax.tree.leaves(direction), strict=True)
    shared = [(each, along) for each, along in pairs if len(each.tasks) > 1]
    weights = jnp.ones(len(gramian), gramian.dtype)
    if shared:
        # The direction is Jᵀw, so J Jᵀ w = J direction; rows of length one keep this in range.
        inner = osgd_jax.gramian([each for each, _ in shared])
        norms = jnp.sqrt(jnp.diagonal(inner))
        units = jnp.where(norms > 0, 1 / jnp.where(norms > 0, norms, 1), 0)
        along = jnp.zeros_like(norms)
        for each, leaf in shared:
            axes = tuple(range(1, each.rows.ndim))
            products = (each.rows * leaf).astype(norms.dtype).sum(axes)
            along = along.at[jnp.array(each.tasks)].add(products)
        cosines = osgd_jax.task_cosines(inner)
        weights = units * (jnp.linalg.pinv(cosines, rtol=1e-5, hermitian=True) @ (units * along))
    return jnp.sqrt(jnp.diagonal(gramian)), osgd_jax.task_cosines(gramian), weights
