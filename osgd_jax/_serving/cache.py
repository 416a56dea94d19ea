"""Values that several threads ask for and one makes."""

import threading
from collections.abc import Callable, Hashable
from typing import Any


class KeyedCache:
    """A dictionary that makes missing values once, also if several threads ask at a time."""

    def __init__(self, values: dict[Any, Any] | None = None):
        self._lock = threading.Lock()
        self._locks: dict[Hashable, threading.Lock] = {}
        self._values: dict[Hashable, Any] = dict(values or {})

    def __reduce__(self) -> Any:
        return KeyedCache, (self.as_dict(),)

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the value of `key`, from `make()` the first time; other keys do not wait."""
        if key not in self._values:
            with self._lock:
                lock = self._locks.setdefault(key, threading.Lock())
            with lock:
                if key not in self._values:
                    self._values[key] = make()
        return self._values[key]

    def put(self, key: Hashable, value: Any) -> None:
        """Set the value of `key`."""
        self._values[key] = value

    def as_dict(self) -> dict[Any, Any]:
        """Return a copy of the values so far."""
        return self._values.copy()
