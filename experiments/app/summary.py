"""Summary of a run: summary.json, and its lines for the terminal."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.table import Table

import osgd_jax
from experiments.app import data, devices, generation, growing, programs, recipes, weights
from experiments.app.config import TrainConfig
from experiments.app.metrics_log import read_metrics
from experiments.app.nets import make_net
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


def growth(
    config: TrainConfig,
    dataset: data.Dataset,
    placed: devices.Placement,
    net: AnytimeNet,
    state: State,
) -> dict[str, Any]:
    """Compare the old outputs of a grown net with themselves before, on the test data.

    Returns:
      The former accuracies and the shares of changed answers, each of the old outputs; nothing if
      the net did not grow in this run or the other run is gone.
    """
    origin = config.run.grow_from
    if origin is None or not (origin / "config.json").exists():
        return {}
    trained = programs.read_trained(origin)
    former = make_net(trained.config.net, dataset, nnx.Rngs(0))
    weights.start_from(former, dataset, trained)
    graphdef, params, rest = nnx.split(former, nnx.Param, ...)
    before = placed.put_state(trained.state._replace(params=params, rest=rest))
    logits = programs.evaluation(graphdef, dataset)[0]
    grown_logits = programs.evaluation(growing.split(config, net)[0], dataset)[0]

    @jax.jit
    def totals(states: tuple[State, State], split: data.Split, counted: jax.Array):
        old = logits(states[0], split.inputs).argmax(-1)
        new = grown_logits(states[1], split.inputs).argmax(-1)[: len(old)]
        shares = (
            each.reshape(*each.shape[:2], -1).mean(-1) for each in (old == split.labels, old != new)
        )
        return tuple(jnp.where(counted, each, 0).sum(1) for each in shares)

    states: Any = before, state
    batch_size = config.run.batch_size
    found = programs.accuracies_and_losses(totals, batch_size, placed, states, dataset.test)
    return {"former_test_accuracy": found[0], "changed_answers": found[1]}


def _diagnosis(records: list[dict[str, Any]]) -> str:
    """Diagnose the steps that were logged by `osgd_jax.diagnose`."""
    if any("gradient_norms" not in record for record in records):
        return "No diagnosis: an earlier version has logged no norms of the gradients."
    norms = np.array([record["gradient_norms"] for record in records])
    cosines = np.array([record["task_cosines"] for record in records])
    count, outputs = norms.shape[1], len(records[0]["losses"])
    if count == 1:
        return "No diagnosis: one output alone was trained."
    trained = range(outputs - count, outputs)
    names = {f"output {k + 1:{len(str(outputs))}}": 0.0 for k in trained}
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
    if former := summary.get("former_test_accuracy"):
        before, changed = (
            " ".join(f"{100 * share:.1f}" for share in shares)
            for shares in (former, summary["changed_answers"])
        )
        yield f"the old outputs had {before} % before; {changed} % of their answers changed"
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
