"""Figures of an evaluation: of each output on examples or on text, and of budgets."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import osgd_jax
from experiments.app import devices, generation, metrics, programs
from experiments.app.data import Dataset, Examples
from experiments.app.evaluation.examples import Tested
from osgd_jax.nets import AnytimeNet


def of_outputs(tested: Tested, net: AnytimeNet, dataset: Dataset) -> dict[str, Any]:
    """Return accuracy, calibration and cost of each output, and how the outputs differ."""
    test, labels = tested.probabilities, tested.labels
    counted = osgd_jax.cost(net, dataset.input_shape)
    costs = np.array([cost.multiply_adds for cost in counted])
    accuracy = metrics.accuracies(test, labels)
    change = metrics.monotonicity(test, labels)
    return {
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
    }


def of_budgets(
    validation: np.ndarray, tested: Tested, net: AnytimeNet, dataset: Dataset, rule: str
) -> dict[str, Any]:
    """Return budgeted classification of the tested examples.

    Args:
      validation: probabilities `[K, n, classes]` of the examples that set thresholds.
      tested: the examples that are reported, and their predictions.
      net: with its trained weights.
      dataset: of the run.
      rule: by which examples leave early.
    """
    costs = np.array([cost.multiply_adds for cost in osgd_jax.cost(net, dataset.input_shape)])
    budgets = metrics.budgeted_classification(
        validation, tested.probabilities, tested.labels, costs, rule=rule
    )
    return {"rule": rule, "budgeted": budgets}


def of_text(
    dataset: Dataset, net: AnytimeNet, accuracy: list[float], losses: list[float], texts: int
) -> dict[str, Any]:
    """Return bits and multiply-adds of each output for a token, and texts at deadlines.

    Args:
      dataset: of the run.
      net: with its trained weights.
      accuracy: of each output on the test text, `[K]`.
      losses: likewise, in nats for a token.
      texts: how many texts are continued.
    """
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
        "deadlines": generation.at_deadlines(net, dataset, bits, texts),
    }


def predicted(
    logits_of: Callable[[Any], jax.Array],
    placed: devices.Placement,
    batch_size: int,
    examples: Examples,
) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities `[K, n, classes]` and labels `[n]`.

    Args:
      logits_of: from inputs to logits `[K, batch, classes]`.
      placed: where batches lie.
      batch_size: examples in a batch.
      examples: to predict.
    """
    parts, labels = [], []
    for split, counted in programs.evaluation_batches(batch_size, examples):
        logits = jax.device_get(logits_of(placed.put_batch(split.inputs)))
        parts.append(logits[:, counted])
        labels.append(split.labels[counted])
    logits = np.concatenate(parts, axis=1).astype(np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True), np.concatenate(labels)
