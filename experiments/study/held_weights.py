"""Do OSGD's weights have to be those of this very batch? Held or estimated ones, by trial.

Where the weights are known, one backward pass of the weighted sum of the losses gives the
direction, at the price of SGD: a parameter that one loss reaches is divided by that loss's weight
to get its own gradient back. The weights come from the Gramian of the first examples of a batch,
every few steps. What that costs in accuracy is measured here; the work is counted by the compiler.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from rich.console import Console

import osgd_jax
from experiments import data, methods
from experiments.benchmark.command import described, machine
from experiments.benchmark.steps import operations
from experiments.data import epoch_batches
from experiments.nets import Family, Sizes, make_net
from experiments.step import (
    Batch,
    Objective,
    State,
    evaluated_logits,
    initial_state,
    logits_of,
    update,
)

# Divided by a smaller weight, a private parameter's gradient would lose its digits.
_LEAST_WEIGHT = 1e-3


class Variant(NamedTuple):
    """Where the weights come from.

    Attributes:
      name: as shown.
      period: steps from one refresh to the next.
      share: the first of this many parts of the batch gives the Gramian.
      least: the weights are at least this much.
      most: and at most this much.
      ridge: this share of the Gramian's diagonal is added to it.
      clipped: whether the direction over the shared parameters is no longer than at the refresh.
    """

    name: str
    period: int = 10
    share: int = 1
    least: float = -np.inf
    most: float = np.inf
    ridge: float = 0.0
    clipped: bool = False


VARIANTS = (
    Variant("each batch's own", period=1),
    Variant("held 2 steps", period=2),
    Variant("held 10 steps"),
    Variant("held 10, within [-1, 1]", least=-1, most=1),
    Variant("held 10, within [0, 1]", least=0, most=1),
    Variant("held 10, length clipped", clipped=True),
    # Is it the clipping alone?
    Variant("all 1, length clipped", least=1, most=1, clipped=True),
    Variant("held 10, ridge 0.3", ridge=0.3),
    Variant("held 10, ridge 0.3, [0, 1], clipped", least=0, most=1, ridge=0.3, clipped=True),
    Variant("of 1/8 of each batch", period=1, share=8),
    Variant("of 1/8 of each batch, ridge 0.3", period=1, share=8, ridge=0.3),
    Variant("of 1/4 of each batch, within [-1, 1]", period=1, share=4, least=-1, most=1),
)


@dataclasses.dataclass(frozen=True)
class Config:
    """What to try.

    Attributes:
      data: built-in data sets.
      nets: families, with three outputs.
      widths: channels of each level of resolution.
      train_size: training examples.
      epochs: passes over them.
      batch_size: examples in a step.
      learning_rates: the best of these by validation data is taken, for each variant.
      seeds: runs of each variant at each rate.
      output: file for the results; a table is written beside it.
    """

    data: tuple[Literal["mnist1d", "digits"], ...] = ("mnist1d", "digits")
    nets: tuple[Literal["width-nested", "depth-nested", "branched"], ...] = ("width-nested",)
    widths: tuple[int, ...] = (16, 16)
    train_size: int = 1000
    epochs: int = 40
    batch_size: int = 100
    learning_rates: tuple[float, ...] = (0.2, 0.4)
    seeds: int = 3
    output: Path = Path("experiments/results/study/held_weights.json")

    def __post_init__(self):
        for field in ("train_size", "epochs", "batch_size", "seeds"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field}={getattr(self, field)} must be at least 1.")


def one_pass(
    losses_of: Callable[[Any], tuple[Any, Any]], params: Any, weights: jax.Array, longest: Any
) -> tuple[Any, Any]:
    """The direction of scope "shared" with these weights by one backward pass, and the auxiliary.

    Args:
      losses_of: from parameters to K losses and anything else.
      params: a tree of arrays.
      weights: of the shared parameters, `[K]`; below 1e-3 in magnitude they are moved there.
      longest: the direction over the shared parameters is scaled down to this length.
    """
    reach = osgd_jax.reach(losses_of, has_aux=True)(params)
    weights = jnp.where(jnp.abs(weights) < _LEAST_WEIGHT, _LEAST_WEIGHT, weights)

    def weighted(params: Any):
        losses, aux = losses_of(params)
        return sum(w * loss for w, loss in zip(weights, losses, strict=True)), aux

    gradient, aux = jax.grad(weighted, has_aux=True)(params)
    flat, treedef = jax.tree.flatten(gradient)
    tasks = treedef.flatten_up_to(reach)
    shared = [leaf for leaf, each in zip(flat, tasks, strict=True) if len(each) > 1]
    scale = jnp.minimum(1, longest / optax.tree.norm(shared))

    def own(leaf: jax.Array, each: tuple[int, ...]) -> jax.Array:
        if len(each) > 1:
            return leaf * scale
        return leaf / weights[each[0]] if each else leaf

    direction = [own(leaf, each) for leaf, each in zip(flat, tasks, strict=True)]
    return treedef.unflatten(direction), aux


class Steps(NamedTuple):
    """The compiled parts of a training run, for all variants.

    Attributes:
      start: from a seed to the state before the first step.
      weights: `{share: (state, indices, least, most, ridge) -> (weights, length)}`.
      step: `(state, indices, weights, longest, learning_rate) -> state`.
      accuracy: `(state, split) -> [K]`.
      work: of a step of SGD, of OSGD, of `step` and of `weights` by share, in operations.
    """

    start: Callable[[int], State]
    weights: dict[int, Any]
    step: Any
    accuracy: Any
    work: dict[str, float]


def compile_steps(config: Config, family: Family, dataset: data.Dataset) -> Steps:
    """Make the steps for a net and a data set."""
    num_steps = config.epochs * (dataset.train.size // config.batch_size)
    sgd, osgd = (methods.method(methods.Settings(name)) for name in ("sgd", "osgd"))
    train, objective = jax.device_put(dataset.train), Objective()

    def split_net(seed: int):
        net = make_net(Sizes(family, 3, config.widths), dataset, nnx.Rngs(seed))
        return nnx.split(net, nnx.Param, ...)

    graphdef, *_ = split_net(0)

    def optimizer(rate: Any) -> Any:
        return sgd.optimizer(optax.cosine_decay_schedule(rate, num_steps))

    def losses_on(state: State, indices: jax.Array):
        targets = jax.nn.one_hot(train.labels[indices], dataset.num_classes)

        def losses_of(params: Any):
            logits, rest = logits_of(graphdef, params, state.rest, train.inputs[indices], None)
            return objective.losses(logits, targets), rest

        return losses_of

    def weights_of(share: int):
        def weights(state: State, indices: jax.Array, least: Any, most: Any, ridge: Any):
            losses_of = losses_on(state, indices[: len(indices) // share])
            grads, _ = osgd_jax.task_grads(losses_of, has_aux=True)(state.params)
            rows = jax.tree.leaves(grads, is_leaf=lambda node: isinstance(node, osgd_jax.TaskRows))
            gramian = osgd_jax.gramian([each for each in rows if len(each.tasks) > 1])
            ridged = gramian + ridge * jnp.diag(jnp.diagonal(gramian))
            weights, _ = osgd_jax.weightings.orthogonal().weigh(ridged, ())
            weights = jnp.clip(weights, least, most)
            return weights, jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0))

        return weights

    def step(state: State, indices: jax.Array, weights: Any, longest: Any, rate: Any) -> State:
        losses_of = losses_on(state, indices)
        direction, rest = one_pass(losses_of, state.params, weights, longest)
        updates, momentum = optimizer(rate).update(direction, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, state.key, params, rest, None, momentum)

    def start(seed: int) -> State:
        _, params, rest = split_net(seed)
        return initial_state(sgd, optimizer(0.1), params, rest, seed)

    def accuracy(state: State, split: data.Split) -> jax.Array:
        logits = evaluated_logits(graphdef, state.params, state.rest, split.inputs)  # pyright: ignore[reportArgumentType] - traced
        return jnp.stack([(each.argmax(-1) == split.labels).mean() for each in logits])

    state, indices = start(0), np.arange(config.batch_size)

    def compiled(function: Callable, *args: Any, **options: Any):
        program = jax.jit(function, **options).lower(*args).compile()
        return program, operations(program)

    def whole_step(method: methods.Method):
        def whole(state: State, indices: jax.Array):
            targets = jax.nn.one_hot(train.labels[indices], dataset.num_classes)
            batch = Batch(train.inputs[indices], targets)
            return update(graphdef, objective, method, optimizer(0.1), state, batch)[0]

        return whole

    balanced = initial_state(osgd, optimizer(0.1), state.params, state.rest, 0)
    held, held_work = compiled(step, state, indices, jnp.ones(3), 1.0, 0.1, donate_argnums=0)
    estimates = {
        share: compiled(weights_of(share), state, indices, 0.0, 0.0, 0.0)
        for share in sorted({variant.share for variant in VARIANTS})
    }
    work = {
        "sgd": compiled(whole_step(sgd), state, indices)[1],
        "osgd": compiled(whole_step(osgd), balanced, indices)[1],
        "step": held_work,
    }
    work |= {f"weights 1/{share}": work for share, (_, work) in estimates.items()}
    weights = {share: program for share, (program, _) in estimates.items()}
    return Steps(start, weights, held, jax.jit(accuracy), work)


def train(
    config: Config, steps: Steps, size: int, variant: Variant | None, seed: int, rate: float
) -> State:
    """Train from a seed; by SGD on the sum of the losses where the variant is None."""
    state, order = steps.start(seed), np.random.default_rng(seed)
    weights, longest, count = jnp.ones(3), jnp.inf, 0
    for _ in range(config.epochs):
        for indices in epoch_batches(size, config.batch_size, order):
            if variant is not None and count % variant.period == 0:
                weights, length = steps.weights[variant.share](
                    state, indices, *map(float, (variant.least, variant.most, variant.ridge))
                )
                longest = length if variant.clipped else jnp.inf
            state = steps.step(state, indices, weights, longest, rate)
            count += 1
    return state


def work_over_sgd(steps: Steps, variant: Variant | None) -> float:
    """Amortised counted work of a step; a refresh on the whole batch is a step of OSGD."""
    work = steps.work
    if variant is None:
        return 1.0
    if variant.share == 1:
        mean = (work["osgd"] + (variant.period - 1) * work["step"]) / variant.period
    else:
        mean = work["step"] + work[f"weights 1/{variant.share}"] / variant.period
    return mean / work["sgd"]


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """Rows of results, one for each data set, net and variant."""
    for name in config.data:
        dataset = data.load(data.Source(name, config.train_size))
        for family in config.nets:
            steps = compile_steps(config, family, dataset)
            for variant in (None, *VARIANTS):
                row = _tune_and_test(config, steps, dataset, variant)
                yield {"data": name, "net": family} | row


def _tune_and_test(
    config: Config, steps: Steps, dataset: data.Dataset, variant: Variant | None
) -> dict[str, Any]:
    tested = {}
    for rate in config.learning_rates:
        states = [
            train(config, steps, dataset.train.size, variant, seed, rate)
            for seed in range(config.seeds)
        ]
        tested[rate] = [
            [steps.accuracy(state, split).tolist() for state in states]
            for split in (dataset.validation, dataset.test)
        ]
    best = max(tested, key=lambda rate: np.mean(tested[rate][0]))
    return {
        "weights": "all 1 (SGD)" if variant is None else variant.name,
        "work_over_sgd": work_over_sgd(steps, variant),
        "learning_rate": best,
        "mean_accuracy": float(np.mean(tested[best][1])),
        "test_accuracy": tested[best][1],
        "validation_accuracy_by_rate": [
            {"learning_rate": rate, "seeds": each[0]} for rate, each in tested.items()
        ],
    }


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    config = results["config"]
    lines = [
        "# OSGD with weights that are held or estimated",
        "",
        f"Mean test accuracy over three outputs, in percent, of {config['seeds']} seeds (least and"
        f" most of a seed); {config['train_size']} training examples, {config['epochs']} epochs;"
        " each at the best of"
        f" the rates {', '.join(map(str, config['learning_rates']))}. Work is counted by the"
        " compiler, a step over one of SGD.",
        "",
        "| data | net | weights | work | rate | accuracy | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["rows"]:
        by_seed = 100 * np.mean(row["test_accuracy"], axis=1)
        lines.append(
            f"| {row['data']} | {row['net']} | {row['weights']} | {row['work_over_sgd']:.2f}"
            f" | {row['learning_rate']} | {by_seed.mean():.1f}"
            f" | {by_seed.min():.1f} – {by_seed.max():.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    config = tyro.cli(Config, prog="python -m experiments.study.held_weights", description=__doc__)
    console = Console()
    results = {"config": described(config), "machine": machine(), "rows": []}
    try:
        config.output.parent.mkdir(parents=True, exist_ok=True)
        for row in measure(config):
            results["rows"].append(row)
            # After every row: a run that is stopped has not been for nothing.
            config.output.write_text(json.dumps(results, indent=1) + "\n")
            config.output.with_suffix(".md").write_text(table(results))
            console.print(
                f"{row['data']}, {row['net']}, {row['weights']}: {row['mean_accuracy']:.1%}"
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(f"Wrote {config.output} and a table beside it.", soft_wrap=True)


if __name__ == "__main__":
    main()
