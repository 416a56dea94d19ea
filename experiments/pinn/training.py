"""Trains physics-informed nets: one, or many at once under `jax.vmap`."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import osgd_jax
from experiments.app import methods
from experiments.app.settings import require
from experiments.app.step import State, initial_state
from experiments.pinn.problems import Problem, Sampling, mesh


@dataclasses.dataclass(frozen=True)
class SolverSettings:
    """The net, its points and its training.

    Attributes:
      method: sum (of the losses), osgd, m_config (one loss a step), the name of a weighting, or
        moco, db_mtl, excess_mtl or graddrop.
      order: of priority for osgd: first_to_last, last_to_first, random, or names such as ic,bc,pde;
        pcd follows the first of it.
      tau: the share of its progress that pcd promises to every other loss.
      weights: what losses are multiplied with, by name, such as bc 100 ic 100, 1 for the others; or
        a number for each in the order of their sorted names: bc, ic, pde. All 1 if not given.
      clip_norm: the norm to which a longer gradient is scaled down, after balancing and before
        Adam; not clipped if not given.
      steps: of Adam.
      width: of the net's layers.
      layers: hidden layers, with tanh.
      frequencies: random ones, whose cosines and sines the net sees in place of the coordinates; 0
        for the coordinates themselves.
      frequency_scale: standard deviation of the frequencies, in periods over a coordinate's range.
      points: for the equation.
      edge_points: for each of the conditions.
      resample: draw new points for each step.
      sampling: how points are drawn, latin_hypercube evenly along each coordinate.
    """

    method: str = "sum"
    order: str = "first_to_last"
    tau: float = 0.02
    weights: tuple[float, ...] | dict[str, float] | None = None
    clip_norm: float | None = None
    steps: int = 5000
    width: int = 50
    layers: int = 4
    frequencies: int = 0
    frequency_scale: float = 1.0
    points: int = 1000
    edge_points: int = 50
    resample: bool = True
    sampling: Sampling = "latin_hypercube"

    def __post_init__(self):
        require(self, fields=("steps", "width", "layers", "points", "edge_points"), at_least=1)
        require(self, fields=("weights", "frequencies"), at_least=0)
        require(self, fields=("clip_norm", "frequency_scale"), above=0)
        require(self, fields=("tau",), at_least=0, at_most=1)
        known = ("sum", "m_config", *sorted({*methods.names()} - {"sgd", "sum"}))
        if self.method not in known:
            raise ValueError(f"method={self.method!r} is unknown; use one of {', '.join(known)}.")
        if self.method == "m_config" and self.clip_norm is not None:
            raise ValueError(
                f"clip_norm={self.clip_norm} must not be given with m_config, which combines the"
                " losses inside of Adam."
            )


class Net(nnx.Module):
    """A field: layers with tanh on coordinates that are scaled to [-1, 1].

    Random Fourier features of the coordinates: Tancik et al., "Fourier Features Let Networks Learn
    High Frequency Functions in Low Dimensional Domains", NeurIPS 2020; not trained.

    Args:
      problem: whose rectangle is scaled.
      settings: `width`, `layers`, `frequencies` and `frequency_scale`.
      rngs: for the initial kernels.
    """

    def __init__(self, problem: Problem, settings: SolverSettings, rngs: nnx.Rngs):
        self.low, self.high = problem.low, problem.high
        glorot, count = nnx.initializers.glorot_normal(), settings.frequencies
        self.frequencies = self._draw(settings, rngs) if count else None
        sizes = [2 * count or 2, *[settings.width] * settings.layers, 1]
        self.layers = nnx.List(
            [nnx.Linear(*each, kernel_init=glorot, rngs=rngs) for each in itertools.pairwise(sizes)]
        )

    def __call__(self, points: jax.Array) -> jax.Array:
        """Values `[N]` at points `[N, 2]`."""
        low, high = jnp.array(self.low), jnp.array(self.high)
        hidden = 2 * (points - low) / (high - low) - 1
        if self.frequencies is not None:
            phases = jnp.pi * (hidden @ self.frequencies[...])
            hidden = jnp.concatenate([jnp.cos(phases), jnp.sin(phases)], axis=-1)
        for layer in self.layers[:-1]:
            hidden = jnp.tanh(layer(hidden))
        return self.layers[-1](hidden)[:, 0]

    @staticmethod
    def _draw(settings: SolverSettings, rngs: nnx.Rngs) -> nnx.Variable:
        drawn = jax.random.normal(rngs.params(), (2, settings.frequencies))
        return nnx.Variable(settings.frequency_scale * drawn)


class Look(NamedTuple):
    """Measures of a net between steps.

    Attributes:
      losses: by name, without weights.
      gramian: of their gradients, `[K, K]`, in the order of their sorted names.
      error: relative L2 error on the grid.
    """

    losses: dict[str, jax.Array]
    gramian: jax.Array
    error: jax.Array


class Solver:
    """Functions of one training run, each for one net.

    Seeds and learning rates may be traced, so that `jax.vmap` trains many nets at once.

    Args:
      problem: to solve.
      settings: of the run.

    Raises:
      ValueError: settings that do not fit the problem.
    """

    def __init__(self, problem: Problem, settings: SolverSettings):
        self.problem, self.settings = problem, settings
        self.names = tuple(sorted(problem.terms))
        self.weights = _weights(settings, self.names)
        self.method = method(settings, self.names)
        self.graphdef, *_ = nnx.split(self._net(0), nnx.Param, ...)
        self.grid = jnp.asarray(mesh(*problem.grid()).reshape(-1, 2), jnp.float32)
        self.solution = jnp.asarray(problem.solution().ravel(), jnp.float32)

    def start(self, seed: Any, rate: Any) -> State:
        """The state before the first step."""
        _, params, rest = nnx.split(self._net(seed), nnx.Param, ...)
        return initial_state(self.method, self._optimizer(rate), params, rest, seed)

    def advance(self, state: State, rate: Any, first: Any, count: int) -> State:
        """Take some steps.

        Args:
          state: before the first of them.
          rate: the highest learning rate, which falls to zero along half a cosine.
          first: number of the first step; the state's own, but the same for all nets of a `vmap`,
            where the loss whose turn it is then stays the same for all.
          count: how many.
        """
        fixed = None if self.settings.resample else self._points(state.key)

        def step(state: State, number: jax.Array) -> tuple[State, None]:
            points = fixed or self._points(jax.random.fold_in(state.key, number))
            return self.step(state, rate, number, points), None

        return jax.lax.scan(step, state, first + jnp.arange(count))[0]

    def step(self, state: State, rate: Any, number: Any, points: dict[str, jax.Array]) -> State:
        """Take one step."""
        params, optimizer = state.params, self._optimizer(rate)
        losses_of = functools.partial(self._weighted, rest=state.rest, points=points)
        balance, extra = None, {}
        if self.method.name == "m_config":
            extra["task"] = number % len(self.names)
            gradient = jax.lax.switch(
                extra["task"], [jax.grad(self._one(losses_of, name)) for name in self.names], params
            )
        elif self.method.balance is None:
            gradient = jax.grad(lambda params: sum(losses_of(params).values()))(params)
        else:
            losses, grads = self.task_gradients(losses_of, params)
            gradient, balance = self.method.balance.update(
                grads, state.balance, params, losses=losses
            )
        updates, moments = optimizer.update(gradient, state.optimizer, params, **extra)
        params = optax.apply_updates(params, updates)
        return state._replace(
            step=state.step + 1, params=params, balance=balance, optimizer=moments
        )

    def task_gradients(self, losses_of: Callable, params: Any) -> tuple[Any, Any]:
        """Losses and their gradients."""
        return osgd_jax.value_and_task_grads(losses_of)(params)

    def look(self, state: State) -> Look:
        """Losses, conflict and error at a state."""
        key = state.key
        if self.settings.resample:
            key = jax.random.fold_in(key, state.step)

        def losses_of(params: Any) -> dict[str, jax.Array]:
            return self.problem.losses(self.field(params, state.rest), self._points(key))

        losses, grads = osgd_jax.value_and_task_grads(losses_of)(state.params)
        wrong = self.field(state.params, state.rest)(self.grid) - self.solution
        error = jnp.linalg.norm(wrong) / jnp.linalg.norm(self.solution)
        return Look(losses, osgd_jax.gramian(grads), error)

    def values(self, state: State) -> np.ndarray:
        """The net's values on the grid."""
        sizes = [len(each) for each in self.problem.grid()]
        return np.asarray(self.field(state.params, state.rest)(self.grid)).reshape(sizes)

    def _net(self, seed: Any) -> Net:
        rngs = nnx.Rngs(jax.random.key(seed))
        return Net(self.problem, self.settings, rngs)

    def field(self, params: Any, rest: Any) -> Net:
        """The net of these parameters."""
        return nnx.merge(self.graphdef, params, rest, copy=True)

    def _points(self, key: jax.Array) -> dict[str, jax.Array]:
        settings = self.settings
        return self.problem.sample(key, settings.points, settings.edge_points, settings.sampling)

    def _weighted(self, params: Any, rest: Any, points: dict[str, jax.Array]):
        losses = self.problem.losses(self.field(params, rest), points)
        return {name: self.weights[name] * loss for name, loss in losses.items()}

    @staticmethod
    def _one(losses_of: Callable, name: str) -> Callable[[Any], jax.Array]:
        return lambda params: losses_of(params)[name]

    def _optimizer(self, rate: Any) -> optax.GradientTransformationExtraArgs:
        schedule = optax.cosine_decay_schedule(rate, self.settings.steps)
        return optax.with_extra_args_support(self.method.optimizer(schedule))


def _weights(settings: SolverSettings, names: tuple[str, ...]) -> dict[str, float]:
    """Return the weight of each loss."""
    given = settings.weights or {}
    if isinstance(given, tuple):
        if len(given) != len(names):
            raise ValueError(
                f"weights={given} must be {len(names)} numbers, for {', '.join(names)}."
            )
        given = dict(zip(names, given, strict=True))
    if unknown := given.keys() - set(names):
        raise ValueError(
            f"weights={given} must be by the names of the losses, {', '.join(names)}; got"
            f" {', '.join(sorted(unknown))}."
        )
    return dict.fromkeys(names, 1.0) | given


def method(settings: SolverSettings, names: tuple[str, ...]) -> methods.Method:
    """The method for losses of these names: how gradients are balanced, then Adam."""
    if settings.method == "m_config":
        return methods.Method("m_config", lambda rate: osgd_jax.m_config(rate, len(names)))
    name = "sgd" if settings.method == "sum" else settings.method
    # The library takes no order by position for losses in a dict.
    ends = {"first_to_last": ",".join(names), "last_to_first": ",".join(reversed(names))}
    order = ends.get(settings.order, settings.order)
    chosen = methods.Settings(name, scope="all", order=order, tau=settings.tau)
    made = methods.method(chosen, num_tasks=len(names))

    def optimizer(schedule: Any) -> optax.GradientTransformation:
        return methods.clipped(optax.adam(schedule), settings.clip_norm)

    return dataclasses.replace(made, name=settings.method, optimizer=optimizer)
