"""Do OSGD's weights have to be those of this very batch? Held or estimated ones, by trial.

Where the weights are known, one backward pass of the weighted sum of the losses gives the
direction, at the price of SGD: a parameter that one loss reaches is divided by that loss's weight
to get its own gradient back. The weights come from the Gramian of the first examples of a batch,
every few steps. What that costs in accuracy is measured here; the work is counted by the compiler.
"""

import copy
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

import osgd_jax
from experiments import command_line, data, methods
from experiments.benchmark.command import described
from experiments.benchmark.timing import operations
from experiments.files import open_file, write_json, write_text
from experiments.nets import Family, Sizes, make_net
from experiments.settings import require
from experiments.tables import machine
from experiments.trainer import Run, Trained, Trainer, tune_and_test
from experiments.training.step import State, logits_of

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
    output: Path = Path("runs/study/held_weights.json")

    def __post_init__(self):
        require(self, fields=("train_size", "epochs", "batch_size", "seeds"), at_least=1)


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


class HeldTrainer(Trainer):
    """Trains nets one by one, step by step, with the weights of a variant.

    Args:
      config: what to try.
      family: of nets.
      dataset: what to train on.
    """

    def __init__(self, config: Config, family: Family, dataset: data.Dataset):
        make = functools.partial(make_net, Sizes(family, 3, config.widths), dataset)
        length = {"epochs": config.epochs, "batch_size": config.batch_size}
        super().__init__(make, dataset, methods.method(methods.Settings("sgd")), **length)
        self.variant: Variant | None = None
        balanced = methods.method(methods.Settings("osgd", "shared"))
        osgd = Trainer(make, dataset, balanced, **length)
        state, batch = self.alone(self.start([Run(0, 0.1)])[0]), self._first_batch()
        self.held, held_work = _compiled(
            self._held_step, state, *batch, jnp.ones(3), 1.0, 0.1, donate_argnums=0
        )
        estimates = {
            share: _compiled(functools.partial(self._weights, share), state, *batch, 0.0, 0.0, 0.0)
            for share in sorted({variant.share for variant in VARIANTS})
        }
        self.weights = {share: program for share, (program, _) in estimates.items()}
        balanced_state = self.alone(osgd.start([Run(0, 0.1)])[0])
        self.work = {
            "sgd": _compiled(self.step, state, batch, 0.1)[1],
            "osgd": _compiled(osgd.step, balanced_state, batch, 0.1)[1],
            "step": held_work,
        } | {f"weights 1/{share}": work for share, (_, work) in estimates.items()}

    def of(self, variant: Variant | None) -> "HeldTrainer":
        """The same programs for a variant; SGD on the sum of the losses if None."""
        other = copy.copy(self)
        other.variant = variant
        return other

    def train(self, runs: Sequence[Run], **callbacks: Any) -> Trained:
        """Train a net; nothing is called on the way."""
        del callbacks
        (run,), variant = runs, self.variant
        state, order = self.alone(self.start(runs)[0]), np.random.default_rng(run.seed)
        weights, longest, count = jnp.ones(3), jnp.inf, 0
        for _ in range(self.epochs):
            for indices in data.epoch_batches(self.dataset.train.size, self.batch_size, order):
                batch = self.gather(indices)
                if variant is not None and count % variant.period == 0:
                    limits = map(float, (variant.least, variant.most, variant.ridge))
                    weights, length = self.weights[variant.share](state, *batch, *limits)
                    longest = length if variant.clipped else jnp.inf
                state = self.held(state, *batch, weights, longest, run.learning_rate)
                count += 1
        return Trained(jax.tree.map(lambda leaf: leaf[None], state), jnp.zeros((1, 3)))

    def work_over_sgd(self) -> float:
        """Amortised counted work of a step; a refresh on the whole batch is a step of OSGD."""
        work, variant = self.work, self.variant
        if variant is None:
            return 1.0
        if variant.share == 1:
            mean = (work["osgd"] + (variant.period - 1) * work["step"]) / variant.period
        else:
            mean = work["step"] + work[f"weights 1/{variant.share}"] / variant.period
        return mean / work["sgd"]

    def _first_batch(self) -> tuple[np.ndarray, np.ndarray]:
        return self.gather(np.arange(self.batch_size))

    def _losses_on(self, state: State, inputs: Any, labels: Any) -> Callable[[Any], Any]:
        batch = self.batch(inputs, labels)

        def losses_of(params: Any):
            logits, rest = logits_of(self.graphdef, params, state.rest, batch.inputs, None)
            return self.objective.losses(logits, batch.targets), rest

        return losses_of

    def _weights(
        self, share: int, state: State, inputs: Any, labels: Any, least: Any, most: Any, ridge: Any
    ) -> tuple[jax.Array, jax.Array]:
        """OSGD's weights by the first of so many parts of a batch, and the direction's length."""
        size = len(labels) // share
        losses_of = self._losses_on(state, inputs[:size], labels[:size])
        grads, _ = osgd_jax.task_grads(losses_of, has_aux=True)(state.params)
        rows = jax.tree.leaves(grads, is_leaf=lambda node: isinstance(node, osgd_jax.TaskRows))
        gramian = osgd_jax.gramian([each for each in rows if len(each.tasks) > 1])
        ridged = gramian + ridge * jnp.diag(jnp.diagonal(gramian))
        weights, _ = osgd_jax.weightings.orthogonal().weigh(ridged, ())
        weights = jnp.clip(weights, least, most)
        return weights, jnp.sqrt(jnp.maximum(weights @ gramian @ weights, 0))

    def _held_step(
        self, state: State, inputs: Any, labels: Any, weights: Any, longest: Any, rate: Any
    ) -> State:
        losses_of = self._losses_on(state, inputs, labels)
        direction, rest = one_pass(losses_of, state.params, weights, longest)
        updates, momentum = self.optimizer(rate).update(direction, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, state.key, params, rest, None, momentum)


def _compiled(function: Callable, *args: Any, **options: Any) -> tuple[Any, float]:
    """A compiled function, and its operations."""
    program = jax.jit(function, **options).lower(*args).compile()
    return program, operations(program)


def measure(config: Config) -> Iterator[dict[str, Any]]:
    """Rows of results, one for each data set, net and variant."""
    for name in config.data:
        dataset = data.load(data.Source(name, config.train_size))
        for family in config.nets:
            trainer = HeldTrainer(config, family, dataset)
            for variant in (None, *VARIANTS):
                holding = trainer.of(variant)
                # Few runs, each a small trial: the seeds that choose the rate are tested.
                seeds = range(config.seeds)
                found = tune_and_test(holding, config.learning_rates, seeds, seeds)
                yield {
                    "data": name,
                    "net": family,
                    "weights": "all 1 (SGD)" if variant is None else variant.name,
                    "work_over_sgd": holding.work_over_sgd(),
                    "learning_rate": found.learning_rate,
                    "mean_accuracy": float(found.tests.mean()),
                    "test_accuracy": found.tests.tolist(),
                    "validation_accuracy_by_rate": [
                        {"learning_rate": rate, "seeds": each.tolist()}
                        for rate, each in found.validation.items()
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
    console = Console()
    try:
        config = command_line.read(Config, "experiments.study.held_weights", __doc__)
        open_file(config.output)
        results = {"config": described(config), "machine": machine(), "rows": []}
        for row in measure(config):
            results["rows"].append(row)
            # After every row: a run that is stopped has not been for nothing.
            write_json(config.output, results)
            write_text(config.output.with_suffix(".md"), table(results))
            console.print(
                f"{row['data']}, {row['net']}, {row['weights']}: {row['mean_accuracy']:.1%}"
            )
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(f"Wrote {config.output} and a table beside it.", soft_wrap=True)


if __name__ == "__main__":
    main()
