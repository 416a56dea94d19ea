"""Early exit: each example leaves with the first output that is sure enough of it."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np

from osgd_jax._serving.rules import Exit
from osgd_jax._serving.runner import Runner
from osgd_jax._serving.stages import Input
from osgd_jax._validation import as_number


def until_sure(runner: Runner, x: Input, leave: Exit) -> tuple[np.ndarray, np.ndarray]:
    """Run each example until an output is sure of it.

    Where few enough are left to fit the next smaller power of two, they go on as a batch of that
    size, filled up with copies of one of them.

    Returns:
      Logits `[batch, …, classes]` and the output that each example's are from, `[batch]`.
    """
    last = runner.model.num_outputs - 1
    exits = np.full(len(x), last)
    examples, rows = np.arange(len(x)), np.arange(len(x))  # those still unsure, and where they are
    progress = runner.start(x)
    answers = before = None
    for k in range(last + 1):
        logits, progress = runner.advance(k, progress)
        host = np.asarray(logits)[rows]
        answers = host.copy() if answers is None else _put(answers, examples, host, k)
        if k == last:
            break
        stay = ~leave.sure(k, host, before)
        exits[examples[~stay]] = k
        examples, rows, before = examples[stay], rows[stay], host[stay]
        if not len(rows):
            break
        size = 1 << (len(rows) - 1).bit_length()
        if size < progress.batch:
            padding = np.full(size - len(rows), rows[0])
            progress = runner.take(progress, np.concatenate([rows, padding]).astype(np.int32))
            rows = np.arange(len(rows))
    assert answers is not None
    return answers, exits


def stop_when_all_are_sure(
    outputs: Iterator[tuple[int, jax.Array, float]], leave: Exit
) -> Iterator[tuple[int, jax.Array, float]]:
    """The outputs up to the first by which every example has been sure once."""
    left, before = np.array(True), None
    for k, logits, now in outputs:
        yield k, logits, now
        host = np.asarray(logits)
        left = left & ~leave.sure(k, host, before)
        if not left.any():
            return
        before = host


def _put(answers: np.ndarray, examples: np.ndarray, logits: np.ndarray, k: int) -> np.ndarray:
    if logits.shape[1:] != answers.shape[1:]:
        raise ValueError(
            f"net has outputs of different shapes, {answers.shape[1:]} and {logits.shape[1:]}"
            f" (output {k}): one answer cannot hold both; use predict without confidence=."
        )
    answers[examples] = logits
    return answers


def last_affordable(budget: float, multiply_adds: Sequence[int]) -> int:
    """The last output that costs at most `budget`.

    Raises:
      ValueError: there is none.
    """
    if not as_number(budget) >= multiply_adds[0]:
        raise ValueError(
            f"budget={budget!r} must be at least {multiply_adds[0]}, the multiply-adds of output 0"
            " for an example of this shape."
        )
    return max(k for k, work in enumerate(multiply_adds) if work <= float(budget))
