"""Measures of an anytime net from the predictions of its outputs, in NumPy.

Probabilities are `[K, n, classes]` of K outputs for n examples.
"""

from typing import Any, NamedTuple

import numpy as np


def accuracies(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the share of right predictions of each output, `[K]`."""
    return (probabilities.argmax(-1) == labels).mean(-1)


def calibration_errors(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> np.ndarray:
    """Return the expected calibration error of each output, `[K]` (arXiv 1706.04599).

    The mean distance of confidence and accuracy over equal bins of confidence.
    """
    confidence, right = probabilities.max(-1), probabilities.argmax(-1) == labels
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = [
        np.abs(np.bincount(place[k], right[k] - confidence[k], bins)).sum()
        for k in range(len(probabilities))
    ]
    return np.array(gaps) / len(labels)


def area_under_curve(accuracy: np.ndarray, costs: np.ndarray) -> float:
    """Return the mean accuracy over budgets from the first to the last output's cost.

    At each budget the last output within it counts, so that the curve is a flight of stairs.
    """
    widths = np.diff(costs)
    return float((accuracy[:-1] * widths).sum() / widths.sum()) if len(costs) > 1 else accuracy[0]


def agreement(probabilities: np.ndarray) -> np.ndarray:
    """Return the share of examples on which two outputs predict the same class, `[K, K]`."""
    predicted = probabilities.argmax(-1)
    return (predicted[:, None] == predicted[None]).mean(-1)


class Monotonicity(NamedTuple):
    """Changes of predictions from each output to the next, shares of the examples, `[K-1]`.

    Attributes:
      gained: wrong before and right after.
      lost: right before and wrong after.
    """

    gained: np.ndarray
    lost: np.ndarray


def monotonicity(probabilities: np.ndarray, labels: np.ndarray) -> Monotonicity:
    """Return the shares of examples that each next output corrects and spoils."""
    right = probabilities.argmax(-1) == labels
    return Monotonicity((~right[:-1] & right[1:]).mean(-1), (right[:-1] & ~right[1:]).mean(-1))


def exit_scores(probabilities: np.ndarray, rule: str) -> np.ndarray:
    """Score the confidence of each output, `[K, n]`, as `AnytimePredictor.predict` does.

    Args:
      probabilities: of K outputs.
      rule: "confidence" (the likeliest class's probability), "margin" (its distance to that of the
        next) or "entropy" (one less the entropy over its largest value).
    """
    if rule == "confidence":
        return probabilities.max(-1)
    if rule == "margin":
        next_best, best = np.sort(probabilities)[..., -2:].transpose(2, 0, 1)
        return best - next_best
    terms = probabilities * np.log(np.where(probabilities > 0, probabilities, 1))
    return 1 + terms.sum(-1) / np.log(probabilities.shape[-1])


def exit_thresholds(scores: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return the scores at which given shares of the examples stop at each output.

    As in MSDNet (Huang et al. 2018, arXiv 1703.09844): from the first output on, the surest
    of the examples that are left stop.

    Args:
      scores: of each output for each example of the validation set, `[K, n]`.
      shares: of the examples that are to stop at each output, `[K]`, of sum one.

    Returns:
      Thresholds `[K]`, the last of them minus infinity.
    """
    count = scores.shape[1]
    left = np.ones(count, bool)
    thresholds = np.full(len(scores), np.inf)
    for k, share in enumerate(shares[:-1]):
        wanted = min(round(share * count), int(left.sum()))
        if wanted > 0:
            thresholds[k] = np.sort(scores[k][left])[::-1][wanted - 1]
            left &= scores[k] < thresholds[k]
    thresholds[-1] = -np.inf
    return thresholds


def exits(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the index of the first output whose score reaches its threshold, `[n]`."""
    return (scores >= thresholds[:, None]).argmax(0)


def budgeted_classification(
    validation: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    costs: np.ndarray,
    budgets: int = 40,
    rule: str = "confidence",
) -> list[dict[str, Any]]:
    """Classify a batch within an average cost, for a series of costs.

    As in MSDNet the share of examples that stop at output k is proportional to qᵏ, for values of
    q from nearly all at the first output to nearly all at the last. Thresholds come from the
    validation set and are applied to the test set.

    Args:
      validation: probabilities on the validation set.
      test: probabilities on the test set.
      test_labels: `[n]`.
      costs: of getting to each output, `[K]`.
      budgets: number of values of q.
      rule: of `exit_scores`.

    Returns:
      For each: average cost and accuracy on the test set, thresholds (None for one that nothing
      reaches), shares of the exits.
    """
    sure, test_sure = exit_scores(validation, rule), exit_scores(test, rule)
    chosen = []
    for log_ratio in np.linspace(-5, 5, budgets):
        shares = np.exp(log_ratio * np.arange(len(costs)))
        thresholds = exit_thresholds(sure, shares / shares.sum())
        taken = exits(test_sure, thresholds)
        predicted = test.argmax(-1)[taken, np.arange(test.shape[1])]
        chosen.append(
            {
                "average_multiply_adds": float(costs[taken].mean()),
                "accuracy": float((predicted == test_labels).mean()),
                "thresholds": [float(t) if np.isfinite(t) else None for t in thresholds],
                "exit_shares": (np.bincount(taken, minlength=len(costs)) / len(taken)).tolist(),
            }
        )
    return chosen
