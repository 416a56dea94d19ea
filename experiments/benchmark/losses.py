"""Compare the gradients of each example's loss with `jax.jacrev` and with `vmap` of `jax.grad`.

Nets take a whole batch, as they do in training; losses are Optax's, one for each example. The
contrastive loss mixes examples, so that `vmap` of `jax.grad` cannot compute it. A second table has
the time of weights of 64 tasks.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

import osgd_jax
from experiments.app.settings import require
from experiments.lab.report import Table
from experiments.lab.timing import compile_anew, spread, time_in_turn

TITLE = "Many losses"
_CLASSES = 8
_WIDTH = 32
_STEPS = 8
# A slow way is not called more often than fits in this time, but at least three times.
_SECONDS = 4.0

Params = Sequence[jax.Array]
Ways = dict[str, Callable]


@dataclasses.dataclass(frozen=True)
class Config:
    """Choose the cases to measure.

    Attributes:
      examples: numbers of losses.
      nets: see `NETS`.
      losses: see `LOSSES`.
      tasks: number of tasks for the weightings.
      weightings: that take no arguments.
      rounds: how often everything is timed.
      output: file for the results.
    """

    examples: tuple[int, ...] = (16, 64, 128, 256)
    nets: tuple[str, ...] = ("dense", "convolutional", "normalized", "attention", "recurrent")
    losses: tuple[str, ...] = (
        *("integer labels", "dense labels", "sigmoid", "hinge", "CTC", "squared", "huber"),
        *("cosine", "contrastive"),
    )
    tasks: int = 64
    weightings: tuple[str, ...] = ("orthogonal", "upgrad")
    rounds: int = 20
    output: Path = Path("runs/benchmark_losses.jsonl")

    def __post_init__(self):
        require(self, fields=("examples", "tasks", "rounds"), at_least=1)
        for field, known in (("nets", NETS), ("losses", LOSSES)):
            unknown = sorted(set(getattr(self, field)) - known.keys())
            if unknown:
                raise ValueError(f"`{field}` must be among {list(known)}, got {unknown}.")


# ---------------------------------------------------------------------------------------------
# Nets: from parameters and inputs `[K, ...]` to logits `[K, classes]`
# ---------------------------------------------------------------------------------------------


def _dense(params: Params, x: jax.Array) -> jax.Array:
    first, second, head = params
    return jnp.tanh(jnp.tanh(x @ first) @ second) @ head


def _convolutional(params: Params, x: jax.Array) -> jax.Array:
    first, second, head = params
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.relu(lax.conv_general_dilated(x, first, (1, 1), "SAME", dimension_numbers=numbers))
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(lax.conv_general_dilated(x, second, (1, 1), "SAME", dimension_numbers=numbers))
    return jnp.mean(x, (1, 2)) @ head


def _normalize(x: jax.Array) -> jax.Array:
    return jax.nn.standardize(x, axis=-1, epsilon=1e-6)


def _normalized(params: Params, x: jax.Array) -> jax.Array:
    first, second, scale, head = params
    return _normalize(jax.nn.gelu(_normalize(x @ first) * scale) @ second) @ head


def _attention(params: Params, x: jax.Array) -> jax.Array:
    query, key, value, out, head = params
    heads = [(x @ kernel).reshape(*x.shape[:-1], 2, -1) for kernel in (query, key, value)]
    y = jax.nn.dot_product_attention(*heads, is_causal=True).reshape(x.shape)
    return jnp.mean(_normalize(x + y @ out), axis=1) @ head


def _recurrent(params: Params, x: jax.Array) -> jax.Array:
    recurrent, first, head = params

    def step(state: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
        return jnp.tanh(state @ recurrent + x @ first), None

    state, _ = lax.scan(step, jnp.zeros_like(x[:, 0] @ first), jnp.swapaxes(x, 0, 1))
    return state @ head


_SQUARE, _HEAD = (_WIDTH, _WIDTH), (_WIDTH, _CLASSES)
# The net, the shapes of its parameters and of an example.
NETS: dict[str, tuple[Callable, Sequence[tuple[int, ...]], tuple[int, ...]]] = {
    "dense": (_dense, [_SQUARE, _SQUARE, _HEAD], (_WIDTH,)),
    "convolutional": (_convolutional, [(3, 3, 3, 8), (3, 3, 8, _WIDTH), _HEAD], (8, 8, 3)),
    "normalized": (_normalized, [_SQUARE, _SQUARE, (_WIDTH,), _HEAD], (_WIDTH,)),
    "attention": (_attention, [*[_SQUARE] * 4, _HEAD], (_STEPS, _WIDTH)),
    "recurrent": (_recurrent, [_SQUARE, _SQUARE, _HEAD], (_STEPS, _WIDTH)),
}

# ---------------------------------------------------------------------------------------------
# Losses: from logits, labels `[K]` and dense targets `[K, classes]` to an array `[K]`
# ---------------------------------------------------------------------------------------------


def _of_elements(loss: Callable) -> Callable:
    return lambda logits, _, targets: jnp.sum(loss(logits, targets), axis=-1)


def _ctc(logits: jax.Array, labels: jax.Array, _: jax.Array) -> jax.Array:
    frames = jnp.stack([logits, 2 * logits, -logits, logits], axis=1)
    labels = jnp.stack([labels, labels], axis=1) % (_CLASSES - 1) + 1
    return optax.ctc_loss(frames, jnp.zeros(frames.shape[:2]), labels, jnp.zeros(labels.shape))


def _contrastive(logits: jax.Array, labels: jax.Array, _: jax.Array) -> jax.Array:
    unit = logits / jnp.linalg.norm(logits, axis=1, keepdims=True)
    similar = unit @ unit.T - 10 * jnp.eye(len(unit))
    return optax.softmax_cross_entropy_with_integer_labels(similar, labels % len(unit))


LOSSES: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "integer labels": lambda logits, labels, _: optax.softmax_cross_entropy_with_integer_labels(
        logits, labels
    ),
    "indexed": lambda logits, labels, _: (
        -jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels]
    ),
    "dense labels": lambda logits, _, targets: optax.softmax_cross_entropy(logits, targets),
    "safe": lambda logits, _, targets: optax.safe_softmax_cross_entropy(logits, targets),
    "poly": lambda logits, _, targets: optax.losses.poly_loss_cross_entropy(logits, targets),
    "kl": lambda logits, _, targets: optax.kl_divergence(jax.nn.log_softmax(logits), targets),
    "sigmoid": _of_elements(optax.sigmoid_binary_cross_entropy),
    "focal": _of_elements(optax.sigmoid_focal_loss),
    "hinge": lambda logits, labels, _: optax.losses.multiclass_hinge_loss(logits, labels),
    "perceptron": lambda logits, labels, _: optax.losses.multiclass_perceptron_loss(logits, labels),
    "sparsemax": lambda logits, labels, _: optax.losses.multiclass_sparsemax_loss(logits, labels),
    "CTC": _ctc,
    "squared": _of_elements(optax.squared_error),
    "huber": _of_elements(optax.huber_loss),
    "log cosh": _of_elements(optax.log_cosh),
    "cosine": lambda logits, _, targets: optax.cosine_distance(logits, targets, epsilon=1e-6),
    "ranking": lambda logits, _, targets: optax.losses.ranking_softmax_loss(
        logits, targets, reduce_fn=None
    ),
    "triplet": lambda logits, _, targets: optax.losses.triplet_margin_loss(
        logits, targets, -targets
    ),
    "contrastive": _contrastive,
}
MIXING = ("contrastive",)


def ways_of(net: str, loss: str, count: int) -> tuple[Ways, tuple]:
    """Make functions of the same gradients, one for each example, and their arguments."""
    apply, shapes, example = NETS[net]
    rng = np.random.default_rng(0)
    params = [rng.normal(size=s) / np.prod(s[:-1]) ** 0.5 for s in shapes]
    labels = rng.integers(_CLASSES, size=count)
    targets = rng.dirichlet(np.ones(_CLASSES), size=count)
    args = params, rng.normal(size=(count, *example)), labels, targets

    def losses(params: Params, x: jax.Array, labels: jax.Array, targets: jax.Array) -> jax.Array:
        return LOSSES[loss](apply(params, x), labels, targets)

    def one(params: Params, *example: jax.Array) -> jax.Array:
        return losses(params, *(each[None] for each in example))[0]

    def task_grads(*args: Any):
        return osgd_jax.densify(osgd_jax.task_grads(losses)(*args))

    ways: Ways = {"task_grads": task_grads, "jacrev": jax.jacrev(losses)}
    if loss not in MIXING:
        ways["vmap of grad"] = jax.vmap(jax.grad(one), in_axes=(None, 0, 0, 0))
    return ways, jax.tree.map(jnp.asarray, args)


# ---------------------------------------------------------------------------------------------
# Measurement
# ---------------------------------------------------------------------------------------------


def measure(config: Config, report: Callable[[str], None]) -> dict[str, Any]:
    """Measure all cases; return the figures as they are written to the file."""
    results: dict[str, Any] = {"examples": [], "weightings": []}
    _measure_case("dense", "squared", 2, rounds=1)  # for what is compiled once in a process
    for net in config.nets:
        for loss in config.losses:
            for count in config.examples:
                report(f"{net}, {loss}, {count} examples")
                row = {"net": net, "loss": loss, "losses": count}
                results["examples"].append(row | _measure_case(net, loss, count, config.rounds))
    rows = np.random.default_rng(0).normal(size=(config.tasks, 2 * config.tasks))
    gramian = jnp.asarray(rows @ rows.T, jnp.float32)
    weigh = {name: jax.jit(_weights_by(name)) for name in config.weightings}
    calls = {name: lambda weights=weights: weights(gramian) for name, weights in weigh.items()}
    for name, seconds in time_in_turn(calls, config.rounds).items():
        figures = {"way": name, "ms": spread(1e3 * seconds)}
        results["weightings"].append({"losses": config.tasks} | figures)
    return results


def _measure_case(net: str, loss: str, count: int, rounds: int) -> dict[str, Any]:
    """Measure all ways in turn, and compare the first with the cheaper of the others."""
    ways, args = ways_of(net, loss, count)
    figures: dict[str, dict[str, float]] = {"compile": {}, "memory": {}, "time": {}}
    calls, first = {}, 0.0
    for name, way in ways.items():
        compiled, figures["compile"][name] = min(
            (compile_anew(way, *args) for _ in range(2)), key=lambda pair: pair[1]
        )
        memory = compiled.memory_analysis()
        figures["memory"][name] = memory.temp_size_in_bytes + memory.output_size_in_bytes
        calls[name] = lambda compiled=compiled: compiled(*args)
        started = time.perf_counter()
        jax.block_until_ready(calls[name]())
        first += time.perf_counter() - started
    rounds = max(min(3, rounds), min(rounds, int(_SECONDS / first)))
    for name, seconds in time_in_turn(calls, rounds).items():
        figures["time"][name] = float(seconds.min())
    ratios = {
        name: values["task_grads"] / min(v for way, v in values.items() if way != "task_grads")
        for name, values in figures.items()
    }
    return figures | {"ratios": ratios}


def _weights_by(name: str) -> Callable[[jax.Array], jax.Array]:
    weighting = getattr(osgd_jax.weightings, name)()
    return lambda gramian: weighting.weigh(gramian, weighting.init())[0]


def tables(results: dict[str, Any]) -> list[Table]:
    """Return a table of the losses and one of the weightings."""
    names, ratios = ("task_grads", "jacrev", "vmap of grad"), ("time", "compile", "memory")
    columns = ["net", "loss", "losses", *(f"{name}, ms" for name in names), *ratios]
    title = "Losses of each example; ratios to the cheaper of jacrev and vmap of grad"
    of_losses = Table(title, columns, words=2)
    for row in results["examples"]:
        ms = [f"{1e3 * row['time'][name]:.2f}" if name in row["time"] else "" for name in names]
        shown = [f"{row['ratios'][name]:.2f}" for name in ratios]
        of_losses.add(row["net"], row["loss"], row["losses"], *ms, *shown)
    of_weights = Table("Weights of many tasks", ["weighting", "tasks", "ms"])
    for row in results["weightings"]:
        of_weights.add(row["way"], row["losses"], f"{row['ms']['median']:.2f}")
    return [of_losses, of_weights]
