"""The base of predictor and generator: latencies, the choice of an output, loading."""

import copy
import os
import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from osgd_jax._serving.cache import KeyedCache
from osgd_jax._serving.latencies import Latencies
from osgd_jax._serving.limits import Limits
from osgd_jax._serving.policies import Batch, until_deadline, until_sure
from osgd_jax._validation import check_positive


class Engine:
    """Base of `AnytimePredictor` and `AnytimeGenerator`.

    A copy or pickle takes the latencies along and compiles anew.
    """

    _read: Callable[..., tuple[Any, ...]]  # path → arguments of `_set_up`

    _set_up: Callable[..., None]

    def _prepare(self, model: Any) -> None:
        self._model = model
        # Read once when a call begins and once after each stage, or once at the end.
        self._clock = time.perf_counter
        self._latencies = Latencies()
        self._costs = KeyedCache()

    def __getstate__(self) -> dict[str, Any]:
        # Calibrating a copy must not change the original.
        return vars(self) | copy.deepcopy({"_latencies": self._latencies, "_costs": self._costs})

    def __repr__(self) -> str:
        settings = {
            "num_outputs": self.num_outputs,
            **self._settings(),
            "device": self._model.device,
        }
        listed = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}({listed})"

    def _settings(self) -> dict[str, Any]:
        """Return what else a repr shows."""
        raise NotImplementedError

    @property
    def num_outputs(self) -> int:
        """Return the number of outputs."""
        return self._model.num_outputs

    @property
    def latencies(self) -> dict[Any, Any]:
        """Return the measured seconds of each stage, by what `calibrate` measured them for."""
        return self._latencies.as_dict()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Load a file that `export` wrote; the net's Python class is not needed.

        Raises:
          ValueError: the file is not one of `export`, is damaged, of another version, or needs
            64-bit floats where JAX has them switched off.
        """
        engine = cls.__new__(cls)
        engine._set_up(*cls._read(path))
        return engine

    def _calibrate(self, key: Any, measure: Callable[[int], Any], repeats: Any) -> Any:
        repeats = check_positive("repeats", repeats)
        self._latencies.renew(key, lambda: measure(repeats))
        return self.latencies[key]

    def _answer(
        self,
        batch: Batch,
        limits: Limits,
        *,
        rows: np.ndarray,
        began: float,
        seconds: Callable[[int], float] | None,
    ) -> tuple[Any, np.ndarray, float | None]:
        """Run a batch within its limits.

        Args:
          batch: before stage 0.
          limits: the choice of outputs.
          rows: the rows that need an answer.
          began: when the time of a deadline began.
          seconds: the expected seconds of stage k; None without a deadline.

        Returns:
          Logits, on the host after an early exit; the output of each row; and the time when the
          logits were ready, or None if nothing has waited for them.
        """
        size, ready = len(batch), None
        if limits.leave is not None:
            logits, exits = until_sure(batch, limits.leave, self.num_outputs, rows)
            return logits, exits, None
        if limits.deadline is not None:
            assert seconds is not None
            end = began + limits.deadline
            logits, last, ready = until_deadline(batch, seconds, self.num_outputs, self._clock, end)
        else:
            logits, last = batch.advance(0, limits.last), limits.last
        return logits, np.full(size, last), ready
