"""Means with 95 % intervals, and paired comparisons."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Values = np.ndarray | Sequence[float]


class Interval(NamedTuple):
    """A mean with its 95 % interval of Student's t.

    >>> f"{Interval(1.5, 0.25):+.1f}"
    '+1.5 ± 0.2'
    """

    mean: float
    half_width: float

    def __format__(self, spec: str) -> str:
        spec = spec or "+.2f"
        return f"{self.mean:{spec}} ± {self.half_width:{spec.lstrip('+')}}"

    def __str__(self) -> str:
        return f"{self}"

    @property
    def sign(self) -> int:
        """1 for an interval above zero, −1 for one below, 0 for one that contains zero."""
        return int(np.sign(self.mean)) if abs(self.mean) > self.half_width else 0

    def as_ratio(self, spec: str = ".2g") -> str:
        """Format an interval of logarithms as a ratio and its bounds."""
        mean, low, high = np.exp(self.mean + self.half_width * np.array([0, -1, 1]))
        return f"{mean:{spec}} ({low:{spec}} to {high:{spec}})"


def interval(values: Values) -> Interval:
    """Return the mean of the values with its interval, which is infinite for a single value."""
    if len(values) < 2:
        return Interval(float(np.mean(values)), float("inf"))
    width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    return Interval(float(np.mean(values)), float(width))


def paired(first: Values, second: Values) -> Interval:
    """Return the mean difference of values from the same seeds; its `sign` is the paired test.

    Raises:
      ValueError: the numbers of values differ.
    """
    if len(first) != len(second):
        raise ValueError(
            f"`first` and `second` must be as many, got {len(first)} and {len(second)}; keep the"
            " values of common seeds."
        )
    return interval(np.asarray(first) - np.asarray(second))


def paired_ratio(first: Values, second: Values) -> Interval:
    """Return the mean difference of logarithms; `as_ratio` shows it."""
    return paired(np.log(first), np.log(second))


def standard_error(values: np.ndarray) -> np.ndarray:
    """Return the standard error of the mean over the first axis; NaN for a single value."""
    return stats.sem(values) if len(values) > 1 else np.full(values.shape[1:], np.nan)
