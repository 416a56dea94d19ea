"""Measure a trained net that answers batches of examples under a deadline."""

from typing import Any, NamedTuple

import numpy as np

import osgd_jax
from experiments.app.data import Split

BATCH = 100
_PASSES = 10


class Answers(NamedTuple):
    """Answers to all batches of a split under one deadline.

    Attributes:
      deadline: seconds from the call to the answer.
      seconds: mean time of an answer.
      in_time: share of the answers that kept the deadline.
      accuracy: share of examples that were answered correctly.
      outputs: share of the answers that came from each output, K numbers.
    """

    deadline: float
    seconds: float
    in_time: float
    accuracy: float
    outputs: tuple[float, ...]


def answer(net: Any, split: Split) -> list[Answers]:
    """Answer batches of 100 examples under K deadlines that leave time for 1, 2, … K outputs.

    Each deadline lies halfway between the calibrated times of an output and of the next one.
    Examples beyond the last full batch are left out.

    Args:
      net: a trained anytime net with K outputs.
      split: labelled examples, at least one batch of them.

    Returns:
      One entry for each deadline, the shortest first.
    """
    predictor = osgd_jax.AnytimePredictor(net)
    latencies = predictor.calibrate(split.inputs[:BATCH])
    slack = 0.5 * np.array([*latencies[1:], latencies[-1]])
    deadlines = np.cumsum(latencies) + slack
    return [_answer_by(predictor, split, float(deadline)) for deadline in deadlines]


def _answer_by(predictor: osgd_jax.AnytimePredictor, split: Split, deadline: float) -> Answers:
    starts = range(0, split.size - BATCH + 1, BATCH)
    batches = [split.read(np.arange(start, start + BATCH)) for start in starts] * _PASSES
    predictions = [predictor.predict(batch.inputs, deadline=deadline) for batch in batches]
    correct = [
        np.asarray(prediction.logits).argmax(-1) == batch.labels
        for prediction, batch in zip(predictions, batches, strict=True)
    ]
    exits = [prediction.exits[0] for prediction in predictions]
    shares = np.bincount(exits, minlength=predictor.num_outputs) / len(exits)
    return Answers(
        deadline,
        float(np.mean([prediction.elapsed for prediction in predictions])),
        float(np.mean([prediction.lateness == 0 for prediction in predictions])),
        float(np.mean(correct)),
        tuple(shares.tolist()),
    )
