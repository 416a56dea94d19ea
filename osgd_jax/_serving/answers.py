"""The results of predictors and generators."""

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


@dataclasses.dataclass(frozen=True, eq=False)
class GeneratedToken:
    """The next token of each prompt.

    Attributes:
      index: how many came before.
      tokens: `[batch]`; −1 for a prompt whose text has stopped.
      logits: `[batch, vocab_size]`, from which the tokens were chosen.
      exits: `[batch]`, the index of the output that gave them; −1 where there is no token.
      elapsed: seconds from the call of `stream` to these tokens.
    """

    index: int
    tokens: np.ndarray
    logits: jax.Array | np.ndarray
    exits: np.ndarray
    elapsed: float


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """The answer to `AnytimeGenerator.generate`.

    Attributes:
      tokens: for each prompt the new tokens, a stop token included.
      exits: for each prompt the index of the output that each of them is from.
      elapsed: seconds from the call of `generate` to the last token.
    """

    tokens: list[np.ndarray]
    exits: list[np.ndarray]
    elapsed: float
