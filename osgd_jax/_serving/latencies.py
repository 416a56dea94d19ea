"""How long each stage takes, measured where it will run."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from osgd_jax._serving.cache import KeyedCache

# A stage of which one run in twenty takes longer than assumed makes few answers late, as most
# deadlines leave some slack. A higher quantile of so few runs would be a matter of one hiccup.
_QUANTILE = 0.95

# For all predictors and generators of the process, or two calibrations would measure each other.
_MEASURING = threading.Lock()


class Latencies:
    """Seconds of each stage, by what they were measured for.

    Args:
      known: those that are measured already.
    """

    def __init__(self, known: dict[Any, Any]):
        self._known = KeyedCache(known)

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


def usual(runs: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return the seconds of each stage that 95 % of the runs keep to."""
    return tuple(np.quantile(runs, _QUANTILE, axis=0).tolist())
