"""The ways to train that the study compares, and the grid of learning rates of each."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import osgd_jax
from experiments.app import methods
from experiments.app.methods import Method
from experiments.studies.anytime.problems import NetProblem
from osgd_jax import weightings

GRID = (0.1, 0.2, 0.4, 0.8, 1.6)


class Candidate(NamedTuple):
    """A way to train.

    Attributes:
      make: makes the method for a problem.
      about: one line for the table.
      rates: its learning rates; those of `GRID` times the scale of its steps.
      epochs: times those of the problem.
    """

    make: Callable[[NetProblem], Method]
    about: str
    rates: tuple[float, ...] = GRID
    epochs: float = 1


def _step(problem: NetProblem, schedule: Any, **changes: Any) -> Any:
    """Take the step of the catalogue, SGD unless it is changed."""
    settings: dict[str, Any] = {"momentum": problem.momentum, "weight_decay": problem.weight_decay}
    return methods.step(methods.Settings(**(settings | changes)), schedule)


_adamw = functools.partial(_step, update="adamw")
_clipped = functools.partial(_step, clip_norm=1.0)


def _lars(problem: NetProblem, schedule: Any) -> Any:
    return optax.lars(schedule, problem.weight_decay, momentum=problem.momentum, nesterov=True)


def _warmed_up(problem: NetProblem, schedule: Any) -> Any:
    """SGD whose rate grows from zero over the first tenth of the steps."""
    steps = _steps(problem) / 10
    growth = optax.scale_by_schedule(lambda count: jnp.minimum(1, (count + 1) / steps))
    return optax.chain(_step(problem, schedule), growth)


def _twice(problem: NetProblem, schedule: Callable[[Any], Any]) -> Any:
    """SGD whose rate falls to zero in half of the steps, and once more in the other half."""
    half = _steps(problem) // 2
    return _step(problem, lambda count: schedule(2 * (count % half)))


def _steps(problem: NetProblem) -> int:
    return problem.epochs * problem.train_size // problem.batch_size


def _candidate(
    about: str,
    balance: Callable[[NetProblem], Any] | None = None,
    optimizer: Callable[..., Any] = _step,
    scale: float = 1.0,
    epochs: float = 1,
) -> Candidate:
    def make(problem: NetProblem) -> Method:
        balanced = None if balance is None else balance(problem)
        return Method(about, functools.partial(optimizer, problem), balanced)

    return Candidate(make, about, tuple(scale * rate for rate in GRID), epochs)


def _weighted(make: Callable[[NetProblem], weightings.Weighting], scope: str = "shared"):
    return lambda problem: osgd_jax.aggregate(make(problem), scope, key=0)


def _osgd(order: Any = "first_to_last", scope: str = "shared"):
    return lambda _: osgd_jax.orthogonalize(order, scope, 0 if order == "random" else None)


def _constant(first: float, last: float):
    """Fixed weights, in equal ratios from the first output to the last."""
    return lambda problem: osgd_jax.aggregate(
        weightings.constant(jnp.geomspace(first, last, problem.outputs).tolist()), "all"
    )


def last_then_all(steps: int) -> weightings.Weighting:
    """The last output's loss alone in the first steps, then the sum (arXiv 2407.14320, mixed)."""

    def weigh(gramian: jax.Array, count: jax.Array, **_: Any) -> Any:
        last = jnp.arange(len(gramian)) == len(gramian) - 1
        return jnp.where(last | (count >= steps), 1, 0).astype(gramian.dtype), count + 1

    return weightings.Weighting(lambda: jnp.int32(0), weigh, scaling="common")


def with_length_of(
    direction: optax.GradientTransformationExtraArgs, length: optax.GradientTransformationExtraArgs
) -> optax.GradientTransformationExtraArgs:
    """The direction of one balancing method, as long as that of another over all parameters.

    Separates what a method gains by where it steps from what it gains by how far.
    """

    def init(params: Any) -> Any:
        return direction.init(params), length.init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        along, first = direction.update(updates, state[0], params, **extra)
        measure, second = length.update(updates, state[1], params, **extra)
        norm, target = optax.tree.norm(along), optax.tree.norm(measure)
        factor = jnp.where(norm > 0, target / jnp.where(norm > 0, norm, 1), 0)
        return optax.tree.scale(factor, along), (first, second)

    return optax.GradientTransformationExtraArgs(init, update)


def trace_tasks(num_tasks: int, decay: float) -> optax.GradientTransformation:
    """Keep a momentum for each task's gradient, to orthogonalize in place of the gradient."""

    def init(params: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.zeros((num_tasks, *leaf.shape), leaf.dtype), params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        state = jax.tree.map(lambda m, g: decay * m + g, state, osgd_jax.densify(updates))
        return state, state

    return optax.GradientTransformation(init, update)


def partial_orthogonal(damping: float = 1.0, conflicts_only: bool = False) -> weightings.Weighting:
    """Gram-Schmidt that takes off a share of each projection, or conflicting projections only."""

    def weigh(gramian: jax.Array, state: Any, **_: Any) -> Any:
        norms, rows = jnp.diagonal(gramian), []
        for i in range(len(gramian)):
            row = jnp.eye(len(gramian))[i]
            for j, earlier in enumerate(rows):
                along, square = gramian[i] @ earlier, earlier @ gramian @ earlier
                taken = square > 1e-6 * norms[j]
                if conflicts_only:
                    taken &= along < 0
                share = damping * along / jnp.where(taken, square, 1)
                row = row - jnp.where(taken, share, 0) * earlier
            rows.append(row)
        return sum(rows), state

    return weightings.Weighting(lambda: (), weigh, scaling="common")


def _zoo() -> dict[str, Candidate]:
    """The other published methods, with their default arguments."""
    names = "pcgrad mgda cagrad upgrad dualproj imtl_g aligned_mtl nash_mtl fairgrad config"
    names += " gradient_equilibrium gradvac random dwa uncertainty famo gradnorm stch gls"
    # Where the weights sum to one, or the direction is the shortest, a step is shorter.
    scales = {"mgda": 4.0, "imtl_g": 2.0, "famo": 2.0, "nash_mtl": 0.25, "fairgrad": 0.25}
    return {
        name: _candidate(
            name,
            lambda problem, name=name: (
                methods.method(methods.Settings(name, "shared"), num_tasks=problem.outputs).balance
            ),
            scale=scales.get(name, 1.0),
        )
        for name in names.split()
    }


_SUM = _weighted(lambda _: weightings.sum(), "all")
_TEXTBOOK = _osgd(scope="all")

CANDIDATES: dict[str, Candidate] = {
    "sgd": _candidate("SGD on the sum of the losses"),
    "sgd-early": _candidate("SGD, weights falling from 1 to 1/4", _constant(1, 0.25)),
    "sgd-late": _candidate("SGD, weights growing from 1/4 to 1", _constant(0.25, 1)),
    "sgd-late-mild": _candidate("SGD, weights growing from 0.55 to 1", _constant(0.55, 1)),
    "sgd-clipped": _candidate("SGD, gradient clipped to norm 1", None, _clipped),
    "adamw": _candidate("AdamW on the sum of the losses", None, _adamw, scale=1 / 32),
    "lars": _candidate("LARS on the sum of the losses", None, _lars, scale=64.0),
    "sgd-warmup": _candidate("SGD, its rate warmed up", None, _warmed_up),
    "sgd-mixed": _candidate(
        "SGD on the last output alone, then on the sum, each in half of the epochs",
        _weighted(lambda problem: last_then_all(_steps(problem) // 2), "all"),
        _twice,
    ),
    "sgd-longer": _candidate("SGD for half as many epochs again", epochs=1.5),
    "osgd-shared": _candidate('OSGD, scope "shared"', _osgd()),
    "osgd-all": _candidate('OSGD, scope "all"', _TEXTBOOK),
    "osgd-reach": _candidate('OSGD, scope "reach"', _osgd(scope="reach")),
    "osgd-leaf": _candidate('OSGD, scope "leaf"', _osgd(scope="leaf")),
    "osgd-reversed": _candidate('OSGD, last to first, scope "all"', _osgd("last_to_first", "all")),
    "osgd-random": _candidate('OSGD, random order, scope "all"', _osgd("random", "all")),
    "osgd-adamw": _candidate('OSGD, scope "all", then AdamW', _TEXTBOOK, _adamw, scale=1 / 32),
    "sgd-osgd-length": _candidate(
        "control: direction of SGD, length of OSGD's step",
        lambda problem: with_length_of(_SUM(problem), _TEXTBOOK(problem)),
    ),
    "osgd-sgd-length": _candidate(
        "control: direction of OSGD, length of SGD's step",
        lambda problem: with_length_of(_TEXTBOOK(problem), _SUM(problem)),
    ),
    "osgd-normalized": _candidate(
        "tried: rows of norm one before OSGD",
        lambda problem: optax.chain(osgd_jax.normalize_task_norms(), _TEXTBOOK(problem)),
    ),
    "osgd-clipped": _candidate(
        'tried: OSGD, scope "reach", then clipped to norm 1', _osgd(scope="reach"), _clipped
    ),
    "osgd-all-clipped": _candidate(
        'tried: OSGD, scope "all", then clipped to norm 1', _TEXTBOOK, _clipped
    ),
    "osgd-warmup": _candidate(
        'tried: OSGD, scope "reach", its rate warmed up', _osgd(scope="reach"), _warmed_up
    ),
    "osgd-half": _candidate(
        "tried: half of each projection", _weighted(lambda _: partial_orthogonal(0.5), "all")
    ),
    "osgd-conflicts": _candidate(
        "tried: conflicting projections only",
        _weighted(lambda _: partial_orthogonal(conflicts_only=True), "all"),
    ),
    "osgd-momentum": _candidate(
        "tried: momentum orthogonalized in place of the gradient",
        lambda problem: optax.chain(
            trace_tasks(problem.outputs, problem.momentum), _TEXTBOOK(problem)
        ),
        functools.partial(_step, momentum=0.0),
    ),
    **_zoo(),
}


def _alone(k: int) -> Candidate:
    def make(problem: NetProblem) -> Method:
        return Method(f"output {k + 1} alone", functools.partial(_step, problem), output=k)

    return Candidate(make, f"output {k + 1} trained alone")


# Each output's subnetwork trained on its own loss: the ceiling of joint training, as far as its
# rates are as well chosen.
ALONE = tuple(f"alone-{k + 1}" for k in range(3))

METHODS = CANDIDATES | {name: _alone(k) for k, name in enumerate(ALONE)}
