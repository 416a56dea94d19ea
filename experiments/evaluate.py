"""Evaluate a trained anytime net: `python -m experiments.evaluate WORKDIR`.

Writes evaluation.json and evaluation.png into the workdir of a finished or stopped run: accuracy,
calibration error and multiply-adds of each output (the anytime curve and the area under it),
budgeted batch classification, agreement of the outputs and what each gains and loses.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from flax import nnx
from rich.console import Console
from rich.table import Table

import osgd_jax
from experiments import data, devices, metrics, programs
from experiments.checkpoints import Checkpoints
from experiments.nets import make_net
from experiments.step import State
from experiments.workdir import read_config, write_json


@dataclasses.dataclass(frozen=True)
class Config:
    """What to evaluate.

    Attributes:
      workdir: of a run of `python -m experiments.train`.
      checkpoint: the last one, or the one with the best mean validation accuracy.
    """

    workdir: tyro.conf.Positional[Path]
    checkpoint: Literal["last", "best"] = "last"


def evaluate(config: Config) -> dict[str, Any]:
    """Return what evaluation.json holds.

    Raises:
      ValueError: no run or no checkpoint in the workdir, or its data is missing.
    """
    run = read_config(config.workdir)
    if not (config.workdir / "checkpoints").is_dir():
        raise ValueError(f"{config.workdir} has no checkpoint yet.")
    batch_size = run.run.batch_size
    placed = devices.placement(batch_size, shard_state=False)
    dataset = data.load(run.dataset)
    net = make_net(run.net, dataset, nnx.Rngs(run.run.seed))
    built = programs.build(run, dataset, placed, net)
    checkpoints = Checkpoints(config.workdir / "checkpoints", run.run.keep_last, {})
    try:
        state = checkpoints.restore(config.checkpoint, built.initial)
    finally:
        checkpoints.close()
    validation, _ = _predict(built, placed, batch_size, state, dataset.validation)
    test, labels = _predict(built, placed, batch_size, state, dataset.test)
    counted = osgd_jax.cost(net, dataset.input_shape)
    costs = np.array([cost.multiply_adds for cost in counted])
    accuracy = metrics.accuracies(test, labels)
    change = metrics.monotonicity(test, labels)
    return {
        "data": dataset.about or dataset.name,
        "checkpoint": config.checkpoint,
        "step": int(state.step),
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
        "budgeted": metrics.budgeted_classification(validation, test, labels, costs),
    }


def _predict(
    built: programs.Programs,
    placed: devices.Placement,
    batch_size: int,
    state: State,
    examples: data.Examples,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `[K, n, classes]` and labels `[n]`."""
    parts, labels = [], []
    for split, counted in programs.evaluation_batches(batch_size, examples):
        logits = jax.device_get(built.logits(state, placed.put_batch(split.inputs)))
        parts.append(logits[:, counted])
        labels.append(split.labels[counted])
    logits = np.concatenate(parts, axis=1).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True), np.concatenate(labels)


def table(found: dict[str, Any]) -> Table:
    """One row an output."""
    shown = Table(title=f"Test data, {found['examples']} examples, step {found['step']}")
    for column in ("output", "accuracy, %", "calibration error, %", "multiply-adds", "parameters"):
        shown.add_column(column, justify="right")
    for k, output in enumerate(found["outputs"]):
        percent = [f"{100 * output[name]:.1f}" for name in ("accuracy", "calibration_error")]
        counts = [f"{output[name]:,}" for name in ("multiply_adds", "parameters")]
        shown.add_row(str(k + 1), *percent, *counts)
    return shown


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the anytime curve and budgeted classification, and save them as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    costs = [output["multiply_adds"] for output in found["outputs"]]
    accuracy = [100 * output["accuracy"] for output in found["outputs"]]
    axes.step(costs, accuracy, where="post", marker="o", label="anytime: last output in budget")
    budgeted = sorted((b["average_multiply_adds"], 100 * b["accuracy"]) for b in found["budgeted"])
    axes.plot(*zip(*budgeted, strict=True), label="budgeted batch: exits by confidence")
    axes.set_xscale("log")
    axes.set_xlabel("multiply-adds per example")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
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
    area = 100 * found["area_under_anytime_curve"]
    console.print(f"area under the anytime curve {area:.1f} %", highlight=False)
    console.print(f"Wrote evaluation.json and evaluation.png in {config.workdir}.", highlight=False)


if __name__ == "__main__":
    main()
