"""The loops that choose an output while the stages run: by a deadline or by confidence."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np

from osgd_jax._serving.rules import Exit


class Advancing(Protocol):
    """Something that passes the stages one after the other."""

    def advance(self, first: int, last: int) -> Any:
        """Run the stages from `first` to `last`; return the logits of the latter, not awaited."""
        ...

    def wait(self) -> None:
        """Wait until the answer of the latest stage can be used."""
        ...


class Batch(Advancing, Protocol):
    """A batch on its way through the stages."""

    def __len__(self) -> int:
        """Return the number of rows at the start."""
        ...

    def keep(self, rows: np.ndarray) -> np.ndarray:
        """Need no other rows from now on; return the places of these in the next logits."""
        ...


def until_deadline(
    batch: Batch,
    seconds: Callable[[int], float],
    num_outputs: int,
    clock: Callable[[], float],
    end: float,
) -> tuple[Any, int, float]:
    """Run stages as long as the next is expected to end in time, and stage 0 always.

    Args:
      batch: before stage 0.
      seconds: the expected seconds of stage k.
      num_outputs: number of stages.
      clock: gives seconds; read once after each stage.
      end: by this clock.

    Returns:
      The latest logits, their output, and the time when they were ready.
    """
    k = 0
    logits = jax.block_until_ready(batch.advance(0, 0))
    now = clock()
    while k + 1 < num_outputs and now + seconds(k + 1) <= end:
        k += 1
        logits = jax.block_until_ready(batch.advance(k, k))
        now = clock()
    return logits, k, now


def until_sure(
    batch: Batch, leave: Exit, num_outputs: int, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Run some examples of a batch until an output is sure of each.

    Returns:
      Logits `[batch, …, classes]` and the output that each example's are from, `[batch]`.
    """
    last = num_outputs - 1
    exits = np.full(len(batch), last)
    rows = examples  # where the examples that are still unsure are
    answers = before = None
    for k in range(num_outputs):
        host = np.asarray(batch.advance(k, k))
        answers = host.copy() if answers is None else _put(answers, examples, host[rows], k)
        if k == last:
            break
        host = host[rows]
        stay = ~leave.sure(k, host, before)
        exits[examples[~stay]] = k
        examples, rows, before = examples[stay], rows[stay], host[stay]
        if not len(rows):
            break
        rows = batch.keep(rows)
    assert answers is not None
    return answers, exits


def stop_when_all_are_sure(
    outputs: Iterator[tuple[int, jax.Array, float]], leave: Exit
) -> Iterator[tuple[int, jax.Array, float]]:
    """Yield the outputs up to the first by which every example has been sure once."""
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
