"""Early exit: each example leaves with the first output that is sure enough of it."""

import numpy as np

from osgd_jax._anytime.combine import confidences
from osgd_jax._anytime.runner import Runner
from osgd_jax._anytime.stages import Input


def until_sure(runner: Runner, x: Input, confidence: float) -> tuple[np.ndarray, np.ndarray]:
    """Run each example until its likeliest class has at least probability `confidence`.

    Where few enough are left to fit the next smaller power of two, they go on as a batch of that
    size, filled up with copies of one of them.

    Returns:
      Logits `[batch, classes]` and the output that each example's are from, `[batch]`.
    """
    exits = np.full(len(x), runner.model.num_outputs - 1)
    answers = np.empty(0)
    examples, rows = np.arange(len(x)), np.arange(len(x))  # those still unsure, and where they are
    progress = runner.start(x)
    for k in range(runner.model.num_outputs):
        logits, progress = runner.advance(k, progress)
        host = np.asarray(logits)
        if k == 0:
            answers = host.copy()
        answers[examples] = host[rows]
        unsure = ~(confidences(host[rows]) >= confidence)
        exits[examples[~unsure]] = k
        examples, rows = examples[unsure], rows[unsure]
        if k + 1 == runner.model.num_outputs or not len(rows):
            break
        size = 1 << (len(rows) - 1).bit_length()
        if size < progress.batch:
            padding = np.full(size - len(rows), rows[0])
            progress = runner.take(progress, np.concatenate([rows, padding]).astype(np.int32))
            rows = np.arange(len(rows))
    return answers, exits
