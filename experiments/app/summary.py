"""Summary of a run: summary.json, and its lines for the terminal."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich.table import Table

import osgd_jax
from experiments.app import data, devices, generation, programs, recipes
from experiments.app.config import TrainConfig
from experiments.app.metrics_log import read_metrics
from experiments.app.step import State
from osgd_jax.nets import AnytimeNet

# Fields that `lines` and `comparison` need.
FIELDS = ("test_accuracy", "validation_accuracy", "multiply_adds", "steps", "clock", "diagnosis")


def summarize(
    config: TrainConfig,
    dataset: data.Dataset,
    placed: devices.Placement,
    built: programs.Programs,
    net: AnytimeNet,
    state: State,
    clock: dict[str, float] | None,
) -> dict[str, Any]:
    """Test a trained state; return the content of summary.json.

    Args:
      config: of the run, whose metrics.jsonl is read.
      dataset: of the run.
      placed: where the state is.
      built: the compiled programs.
      net: of the run; for text it takes the trained weights.
      state: after the last step.
      clock: times of the training; None if all of its steps were done before.
    """
    test_accuracy, test_losses = built.measure(placed, state, dataset.test)
    records = read_metrics(config.workdir)
    costs = osgd_jax.cost(net, dataset.input_shape)
    summary = {
        "test_accuracy": test_accuracy,
        "validation_accuracy": records[-1]["validation_accuracy"],
        "final_losses": records[-1]["losses"],
        "steps": built.num_steps,
        "parameters": [cost.parameters for cost in costs],
        "multiply_adds": [cost.multiply_adds for cost in costs],
        "clock": clock,
        "diagnosis": _diagnosis(records),
    }
    if dataset.is_text:
        summary["test_bits_per_token"] = (np.array(test_losses) / np.log(2)).tolist()
        if jax.process_count() == 1:
            nnx.update(net, jax.device_get(state.params))
            summary["samples"] = generation.sample(net, dataset)
    return summary


def _diagnosis(records: list[dict[str, Any]]) -> str:
    """Diagnose the steps that were logged by `osgd_jax.diagnose`."""
    if any("gradient_norms" not in record for record in records):
        return "No diagnosis: an earlier version has logged no norms of the gradients."
    norms = np.array([record["gradient_norms"] for record in records])
    cosines = np.array([record["task_cosines"] for record in records])
    count = norms.shape[1]
    names = {f"output {k + 1:{len(str(count))}}": 0.0 for k in range(count)}
    return str(osgd_jax.diagnose(cosines * norms[:, :, None] * norms[:, None, :], names))


def lines(summary: dict[str, Any]) -> Iterator[str]:
    """Yield the results of a run, a line each."""
    if bits := summary.get("test_bits_per_token"):
        figures = " ".join(f"{value:.3f}" for value in bits)
        yield f"test bits per token {figures} at the outputs in order"
        for k, text in enumerate(summary.get("samples", ())):
            yield f"output {k + 1} writes: {text!r}"
    accuracies = " ".join(f"{100 * share:.1f}" for share in summary["test_accuracy"])
    yield f"test accuracy {accuracies} % at the outputs in order"
    if summary["clock"] is not None:
        yield f"waited for input {100 * summary['clock']['waiting_for_input']:.1f} % of the time"
    yield summary["diagnosis"]


def comparison(recipe: str, data_name: str, summary: dict[str, Any]) -> Table:
    """Return a table of the outputs, beside the published accuracies on the same data.

    Args:
      recipe: of the run.
      data_name: name of its data set.
      summary: of the run.

    Raises:
      ValueError: the recipe is unknown.
    """
    published = recipes.published(recipe, data_name)
    table = Table(title=f"{recipe} on {data_name}")
    columns = ["output", "million multiply-adds", "validation, %", "test, %"]
    for column in [*columns, *(f"{net}, published, %" for net in published)]:
        table.add_column(column, justify="right")
    for k, multiply_adds in enumerate(summary["multiply_adds"]):
        shares = (summary[f"{split}_accuracy"][k] for split in ("validation", "test"))
        accuracies = [*(100 * share for share in shares), *(each[k] for each in published.values())]
        figures = (f"{value:.1f}" for value in (multiply_adds / 1e6, *accuracies))
        table.add_row(str(k + 1), *figures)
    return table
