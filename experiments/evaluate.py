"""Evaluate a trained anytime net: `python -m experiments.evaluate WORKDIR`.

Writes evaluation.json and evaluation.png into the workdir of a finished or stopped run: accuracy,
calibration error and multiply-adds of each output (the anytime curve and the area under it),
budgeted batch classification, agreement of the outputs and what each gains and loses. Of a run on
text: bits per token and multiply-adds of each output, and texts continued at random deadlines.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import osgd_jax
from experiments import data, generation, metrics
from experiments.settings import require
from experiments.training import devices, programs
from experiments.training.workdir import (
    check_rule,
    keep_data,
    read_config,
    read_data,
    write_json,
)
from osgd_jax.plots import anytime_curve


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate.

    Attributes:
      workdir: of a run of `python -m experiments.train`.
      checkpoint: the last one, or the one with the best mean validation accuracy.
      data: where the data is now, or other data of the same classes; that of the run if not given.
      data_dir: where tensorflow_datasets keeps what it has prepared; as in the run if not given.
      rule: by what examples leave early in budgeted classification: the probability of the
        likeliest class, its distance to that of the next, or one less the entropy.
      texts: how many texts are continued at random deadlines.
    """

    workdir: tyro.conf.Positional[Path]
    checkpoint: Literal["last", "best"] = "last"
    data: str | None = None
    data_dir: Path | None = None
    rule: Literal["confidence", "margin", "entropy"] = "confidence"
    texts: int = 60

    def __post_init__(self):
        require(self, fields=("texts",), at_least=1)


def evaluate(config: Config) -> dict[str, Any]:
    """Return what evaluation.json holds.

    Raises:
      ValueError: no run or no checkpoint in the workdir, or its data is missing or other data.
    """
    dataset = load_data(config)
    run, _, net, state = programs.read_trained(config.workdir, config.checkpoint)
    count = jax.device_count()
    batch_size = -(-run.run.batch_size // count) * count
    placed = devices.placement(batch_size, shard_state=False)
    state = placed.put_state(state)
    logits_of, totals = programs.evaluation(nnx.graphdef(net), dataset)
    common = {
        "data": dataset.about or dataset.name,
        "checkpoint": config.checkpoint,
        "step": int(state.step),
    }
    if dataset.is_text:
        tested = programs.evaluate(jax.jit(totals), batch_size, placed, state, dataset.test)
        return common | _of_text(config, dataset, net, *tested)
    logits = functools.partial(jax.jit(logits_of), state)
    validation, _ = _predict(logits, placed, batch_size, dataset.validation)
    test, labels = _predict(logits, placed, batch_size, dataset.test)
    counted = osgd_jax.cost(net, dataset.input_shape)
    costs = np.array([cost.multiply_adds for cost in counted])
    accuracy = metrics.accuracies(test, labels)
    change = metrics.monotonicity(test, labels)
    return common | {
        "examples": len(labels),
        "outputs": [
            {
                "accuracy": float(accuracy[k]),
                "calibration_error": float(error),
                "multiply_adds": int(costs[k]),
                "parameters": counted[k].parameters,
            }
            for k, error in enumerate(metrics.calibration_errors(test, labels))
        ],
        "area_under_anytime_curve": metrics.area_under_curve(accuracy, costs),
        "agreement": metrics.agreement(test).tolist(),
        "gained": change.gained.tolist(),
        "lost": change.lost.tolist(),
        "rule": config.rule,
        "budgeted": metrics.budgeted_classification(
            validation, test, labels, costs, rule=config.rule
        ),
    }


def _of_text(
    config: Config, dataset: data.Dataset, net: Any, accuracy: list[float], losses: list[float]
) -> dict[str, Any]:
    """Bits and multiply-adds of each output for a token, and texts at deadlines."""
    (length,) = dataset.input_shape
    bits = (np.array(losses) / np.log(2)).tolist()
    costs = osgd_jax.cost(net, dataset.input_shape)
    return {
        "examples": dataset.test.size,
        "outputs": [
            {
                "bits_per_token": bits[k],
                "accuracy": accuracy[k],
                "multiply_adds": cost.multiply_adds / length,
                "parameters": cost.parameters,
            }
            for k, cost in enumerate(costs)
        ],
        "deadlines": generation.at_deadlines(net, dataset, bits, config.texts),
    }


def load_data(config: Config) -> data.Dataset:
    """The data to evaluate on, standardised as in the run's training.

    Raises:
      ValueError: it is missing, or its classes or images are not like those of the run.
    """
    source = read_config(config.workdir).dataset
    if config.data_dir is not None:
        source = dataclasses.replace(source, data_dir=config.data_dir)
    if config.data is None:
        dataset = data.load(source)
        keep_data(config.workdir, dataset)
        return dataset
    known = read_data(config.workdir)
    side = known.input_shape[0] if len(known.input_shape) == 3 else None
    dataset = data.load(dataclasses.replace(source, data=config.data, image_size=side))
    check_rule(config.workdir, dataset)
    for name in ("num_classes", "classes", "input_shape"):
        here, there = getattr(dataset, name), getattr(known, name)
        if here != there:
            raise ValueError(f"data={config.data} has {name} {here}, the run {there}.")
    if dataset.raw.dtype != known.dtype:
        raise ValueError(
            f"data={config.data} has {dataset.raw.dtype} pixels, the run {known.dtype}."
        )
    if dataset.standardised is not None:
        return dataset
    return dataclasses.replace(dataset, mean=known.mean, deviation=known.deviation)


def _predict(
    logits_of: Callable[[Any], jax.Array],
    placed: devices.Placement,
    batch_size: int,
    examples: data.Examples,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[K, n, classes]` and labels `[n]`."""
    parts, labels = [], []
    for split, counted in programs.evaluation_batches(batch_size, examples):
        logits = jax.device_get(logits_of(placed.put_batch(split.inputs)))
        parts.append(logits[:, counted])
        labels.append(split.labels[counted])
    logits = np.concatenate(parts, axis=1).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True), np.concatenate(labels)


def table(found: dict[str, Any]) -> Table:
    """One row an output."""
    shown = Table(title=f"Test data, {found['examples']} examples, step {found['step']}")
    columns = {
        "bits_per_token": ("bits per token", lambda value: f"{value:.3f}"),
        "accuracy": ("accuracy, %", lambda value: f"{100 * value:.1f}"),
        "calibration_error": ("calibration error, %", lambda value: f"{100 * value:.1f}"),
        "multiply_adds": ("multiply-adds", lambda value: f"{value:,.0f}"),
        "parameters": ("parameters", lambda value: f"{value:,}"),
    }
    measured = [columns[name] for name in columns if name in found["outputs"][0]]
    for header in ("output", *[header for header, _ in measured]):
        shown.add_column(header, justify="right")
    for k, output in enumerate(found["outputs"]):
        figures = [show(output[name]) for name, (_, show) in columns.items() if name in output]
        shown.add_row(str(k + 1), *figures)
    return shown


def deadlines_table(found: dict[str, Any]) -> Table:
    """Texts at deadlines, a row for each range of these."""
    shown = Table(title="Texts continued at random deadlines")
    for column in ("deadline, ms", "tokens by each output, %", "bits per token", "late, %"):
        shown.add_column(column, justify="right")
    for row in found["deadlines"]:
        shares = " ".join(f"{100 * share:.0f}" for share in row["exit_shares"])
        figures = f"{row['bits_per_token']:.3f}", f"{100 * row['late']:.1f}"
        shown.add_row(f"{1e3 * row['deadline']:.2f}", shares, *figures)
    return shown


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the anytime curve, and budgeted classification or deadlines, and save the picture."""
    from matplotlib.figure import Figure

    if "deadlines" in found:
        figure = Figure(figsize=(9.6, 4.2), layout="constrained")
        curve, timed = figure.subplots(1, 2, sharey=True)
        bits = [output["bits_per_token"] for output in found["outputs"]]
        anytime_curve([each["multiply_adds"] for each in found["outputs"]], bits, axes=curve)
        curve.set_xlabel("multiply-adds per token, up to each output")
        curve.set_ylabel("test bits per token")
        rows = found["deadlines"]
        deadlines = [1e3 * row["deadline"] for row in rows]
        timed.plot(deadlines, [row["bits_per_token"] for row in rows], "o-")
        timed.set_xlabel("deadline for each token, ms")
        timed.grid(alpha=0.3)
        figure.savefig(path, dpi=150)
        return
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    costs = [output["multiply_adds"] for output in found["outputs"]]
    accuracy = [100 * output["accuracy"] for output in found["outputs"]]
    label = "anytime: last output in budget"
    anytime_curve(costs, accuracy, label=label, axes=axes, drawstyle="steps-post")
    budgeted = sorted((b["average_multiply_adds"], 100 * b["accuracy"]) for b in found["budgeted"])
    axes.plot(*zip(*budgeted, strict=True), label=f"budgeted batch: exits by {found['rule']}")
    axes.set_ylabel("test accuracy, %")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    console = Console()
    try:
        config = tyro.cli(Config, prog="python -m experiments.evaluate", description=__doc__)
        found = evaluate(config)
        write_json(config.workdir / "evaluation.json", found)
        plot(found, config.workdir / "evaluation.png")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    console.print(found["data"], highlight=False, markup=False, soft_wrap=True)
    console.print(table(found))
    if "deadlines" in found:
        console.print(deadlines_table(found))
    else:
        area = 100 * found["area_under_anytime_curve"]
        console.print(f"area under the anytime curve {area:.1f} %", highlight=False)
    console.print(f"Wrote evaluation.json and evaluation.png in {config.workdir}.", highlight=False)


if __name__ == "__main__":
    main()
