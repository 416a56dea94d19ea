"""What a predictor gives."""

import dataclasses

import jax
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class AnytimeOutput:
    """One output of a net.

    Attributes:
      index: which one, from 0.
      logits: `[batch, …, classes]`, ready.
      elapsed: seconds from the call of `stream` to this output.
    """

    index: int
    logits: jax.Array
    elapsed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Prediction:
    """The answer to `AnytimePredictor.predict`.

    Attributes:
      logits: `[batch, …, classes]`, ready.
      exits: `[batch]`, the index of the output that each example's logits are from.
      elapsed: seconds from the call of `predict` to the answer.
      lateness: seconds by which the answer came after the deadline; 0 where it was kept or none
        was given.
    """

    logits: jax.Array
    exits: np.ndarray
    elapsed: float
    lateness: float
