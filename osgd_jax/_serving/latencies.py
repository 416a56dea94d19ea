"""Latencies of stages, measured on the device that runs them."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from osgd_jax._serving.cache import KeyedCache
from osgd_jax._serving.policies import Advancing

# A stage of which one run in twenty takes longer than assumed makes few answers late, as most
# deadlines leave some slack. A higher quantile of so few runs would be a matter of one hiccup.
_QUANTILE = 0.95
_WARM_UP = 3

# For all predictors and generators of the process, or two calibrations would measure each other.
_MEASURING = threading.Lock()


class Latencies:
    """Seconds of each stage, by what they were measured for."""

    def __init__(self) -> None:
        self._known = KeyedCache()

    def get(self, key: Any, measure: Callable[[], Any]) -> Any:
        """Return the latencies of a key, measured now if they are unknown."""
        return self._known.get(key, lambda: _alone(measure))

    def renew(self, key: Any, measure: Callable[[], Any]) -> None:
        """Measure the latencies of a key again."""
        self._known.put(key, _alone(measure))

    def as_dict(self) -> dict[Any, Any]:
        """Return a copy of the latencies so far."""
        return self._known.as_dict()


def _alone(measure: Callable[[], Any]) -> Any:
    with _MEASURING:
        return measure()


def measure(
    start: Callable[[], Advancing],
    num_outputs: int,
    repeats: int,
    clock: Callable[[], float],
) -> tuple[float, ...]:
    """Return the seconds of each stage that 95 % of its runs keep to.

    Args:
      start: makes a batch before stage 0.
      num_outputs: number of stages.
      repeats: number of measured runs.
      clock: gives seconds.
    """
    runs = []
    for _ in range(_WARM_UP + repeats):
        batch, times = start(), [clock()]
        for k in range(num_outputs):
            batch.advance(k, k)
            batch.wait()
            times.append(clock())
        runs.append(np.diff(times))
    return tuple(np.quantile(runs[_WARM_UP:], _QUANTILE, axis=0).tolist())
