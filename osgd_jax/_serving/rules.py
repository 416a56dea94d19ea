"""Scores of confidence, the rules by which examples leave early."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from osgd_jax._validation import as_number

# (logits of an output, those of the output before, None at the first) → a score for each example
Rule = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Take the softmax in float64, or the sigmoid of a single logit, for two classes."""
    wide = logits.astype(np.float64)
    if wide.shape[-1] == 1:
        wide = np.concatenate([np.zeros_like(wide), wide], axis=-1)
    with np.errstate(invalid="ignore"):
        powers = np.exp(wide - wide.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _confidence(logits: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    del before
    return probabilities(logits).max(-1)


def _entropy(logits: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    del before
    p = probabilities(logits)
    return 1 + (p * np.log(np.where(p == 0, 1, p))).sum(-1) / math.log(p.shape[-1])


def _margin(logits: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    del before
    ascending = np.sort(probabilities(logits), axis=-1)
    return ascending[..., -1] - ascending[..., -2]


def _agreement(logits: np.ndarray, before: np.ndarray | None) -> np.ndarray:
    p = probabilities(logits)
    if before is None:
        return np.zeros(p.shape[:-1])
    same = p.argmax(-1) == probabilities(before).argmax(-1)
    return np.where(np.isnan(p).any(-1), np.nan, same)


RULES: dict[str, Rule] = {
    "confidence": _confidence,
    "entropy": _entropy,
    "margin": _margin,
    "agreement": _agreement,
}


class Exit(NamedTuple):
    """The condition on which an example leaves.

    Attributes:
      rule: gives the score of each example.
      thresholds: the least score to leave with, for each output; infinite where nobody leaves.
    """

    rule: Rule
    thresholds: Sequence[float]

    def sure(self, k: int, logits: np.ndarray, before: np.ndarray | None) -> np.ndarray:
        """Tell which examples leave at output k, `[batch]`; examples with NaN never leave."""
        scores = self.rule(logits, before)
        return scores.reshape(len(logits), -1).mean(1) >= self.thresholds[k]


def make_exit(confidence: Any, rule: Any, num_outputs: int) -> Exit | None:
    """Check the arguments of `predict` and `stream` that say when an example leaves, if it may.

    Raises:
      ValueError: the rule is unknown or has no threshold, or the thresholds are not one number or
        one for each output, in (0, 1] for the named rules.
    """
    if confidence is None and isinstance(rule, str) and rule == "confidence":
        return None
    score = RULES.get(rule) if isinstance(rule, str) else None
    named = score is not None
    if score is None and callable(rule):
        score = functools.partial(_scores, rule)
    if score is None:
        known = ", ".join(repr(name) for name in RULES)
        raise ValueError(f"rule={rule!r} must be one of {known}, or a function of the logits.")
    if confidence is None:
        raise ValueError(
            f"rule={rule!r} needs confidence=, the least score with which an example leaves."
        )
    several = np.iterable(confidence) and not isinstance(confidence, str)
    given = list(confidence) if several else [confidence] * num_outputs
    if len(given) != num_outputs:
        raise ValueError(
            f"confidence={confidence!r} must be one number or one for each of the {num_outputs}"
            " outputs."
        )
    # Whoever is left leaves at the last output, whatever its entry.
    checked = given[: num_outputs - several]
    thresholds = [_threshold(confidence, each, named, several) for each in checked]
    return Exit(score, [*thresholds, -math.inf][:num_outputs])


def _threshold(confidence: Any, value: Any, named: bool, several: bool) -> float:
    number = math.inf if value is None else as_number(value)
    if several and number == math.inf:
        return number
    if not math.isfinite(number) or (named and not 0 < number <= 1):
        within = " in (0, 1]" if named else ""
        raise ValueError(
            f"confidence={confidence!r} must be a number{within}, or one for each output with None"
            " where no example may leave."
        )
    return number


def _scores(rule: Callable[[np.ndarray], Any], logits: np.ndarray, _: Any) -> np.ndarray:
    scores = np.asarray(rule(logits))
    if scores.shape != logits.shape[:1] or scores.dtype.kind not in "biuf":
        raise ValueError(
            f"rule={rule!r} gave {scores.dtype} of shape {scores.shape} and must give one number"
            f" for each of the {len(logits)} examples in logits of shape {logits.shape}."
        )
    return scores.astype(np.float64)
