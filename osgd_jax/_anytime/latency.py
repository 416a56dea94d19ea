"""How long each stage takes, measured where it will run."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from osgd_jax._anytime.runner import KeyedCache

# A stage of which one run in twenty takes longer than assumed makes few answers late, as most
# deadlines leave some slack. A higher quantile of so few runs would be a matter of one hiccup.
QUANTILE = 0.95
REPEATS = 50
_WARM_UP = 3


class Latencies:
    """Seconds of each stage, by shape and dtype of the input.

    Args:
      known: those that are measured already.
    """

    def __init__(self, known: dict[Any, tuple[float, ...]]):
        self._known = KeyedCache(known)
        self._measuring = threading.Lock()

    def get(self, key: Any, run: Callable[[], np.ndarray]) -> tuple[float, ...]:
        """Those of an input; measured by `run`, which gives those of one run, if unknown."""
        return self._known.get(key, lambda: self._measure(run, REPEATS))

    def renew(self, key: Any, run: Callable[[], np.ndarray], repeats: int) -> None:
        """Measure again."""
        self._known.put(key, self._measure(run, repeats))

    def as_dict(self) -> dict[Any, tuple[float, ...]]:
        """Those of all inputs so far."""
        return self._known.as_dict()

    def _measure(self, run: Callable[[], np.ndarray], repeats: int) -> tuple[float, ...]:
        # One at a time, or two calibrations would measure each other.
        with self._measuring:
            runs = [run() for _ in range(_WARM_UP + repeats)]
        return tuple(np.quantile(runs[_WARM_UP:], QUANTILE, axis=0).tolist())
