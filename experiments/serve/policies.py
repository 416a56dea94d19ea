"""Ways to answer requests under load, to compare with `AnytimeServer`; each on one device."""

import bisect
import collections
import concurrent.futures
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from osgd_jax import OverloadedError
from osgd_jax._serving.scheduler import Scheduler, Stretch

# Examples `[batch, …]` → their classes and the outputs that answered, `[batch]` each.
Model = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Reply(NamedTuple):
    """Class of one example and the output that gave it."""

    label: int
    output: int


class Policy(Protocol):
    """Decides which requests run next, on which model."""

    def admit(self, key: Any, deadline: float, now: float) -> bool:
        """Take a request or refuse it."""
        ...

    def next(self, now: float) -> tuple[int, list[Any], list[Any]]:
        """Return a model, the requests for it, and requests to refuse; no requests if none wait."""
        ...


class FirstComeFirstServed:
    """One model; takes everybody, in the order of arrival.

    Args:
      max_batch: largest batch.
    """

    def __init__(self, max_batch: int):
        self._max_batch = max_batch
        self._waiting: collections.deque[Any] = collections.deque()

    def admit(self, key: Any, deadline: float, now: float) -> bool:
        """Take the request."""
        self._waiting.append(key)
        return True

    def next(self, now: float) -> tuple[int, list[Any], list[Any]]:
        """Return the requests that have waited longest."""
        count = min(self._max_batch, len(self._waiting))
        return 0, [self._waiting.popleft() for _ in range(count)], []


class RefusesLate:
    """One model; the library's scheduler with this model as the only stage.

    Args:
      seconds: of the model for batches of 1, 2, 4, …
    """

    def __init__(self, seconds: Sequence[float]):
        self._scheduler: Scheduler[Any] = Scheduler([seconds], capacity=1 << (len(seconds) - 1))
        self._began: float | None = None

    def admit(self, key: Any, deadline: float, now: float) -> bool:
        """Take the request if its answer fits before its deadline."""
        return self._scheduler.admit(key, deadline, now)

    def next(self, now: float) -> tuple[int, list[Any], list[Any]]:
        """Return the requests with the earliest deadlines."""
        if self._began is not None:
            self._scheduler.finish(seconds=now - self._began)
        decision = self._scheduler.next(now)
        self._began = now if decision.batch else None
        return 0, decision.batch.keys if decision.batch else [], decision.refused


class Zoo:
    """Separate nets; a request gets the largest one that the queue leaves time for.

    The choice is made on arrival: the net is the largest whose answer fits before the deadline
    after all that is queued. Then the net whose first request is due earliest runs. Measured times
    follow the machine as those of the library's scheduler do.

    Args:
      seconds: of each net for batches of 1, 2, 4, …, the smallest net first.
    """

    def __init__(self, seconds: Sequence[Sequence[float]]):
        self._seconds = seconds
        self._max_batch = 1 << (len(seconds[0]) - 1)
        # Sorted by deadline; the number breaks ties.
        self._queues: list[list[tuple[float, int, Any]]] = [[] for _ in seconds]
        self._numbers = itertools.count()
        self._stretch = Stretch()
        self._began: tuple[float, float] | None = None  # when a batch began and should end

    def admit(self, key: Any, deadline: float, now: float) -> bool:
        """Queue the request at a net, or refuse it if even the smallest would be late."""
        lengths = [len(queue) for queue in self._queues]
        start = max(now, self._began[1] if self._began else now)
        for net in reversed(range(len(self._seconds))):
            longer = [length + (i == net) for i, length in enumerate(lengths)]
            if start + sum(map(self._work, self._seconds, longer)) <= deadline:
                bisect.insort(self._queues[net], (deadline, next(self._numbers), key))
                return True
        return False

    def next(self, now: float) -> tuple[int, list[Any], list[Any]]:
        """Return a batch of the net whose first request is due earliest."""
        if self._began:
            begin, end = self._began
            self._stretch.follow(end - begin, now - begin)
            self._began = None
        waiting = [(queue[0][0], net) for net, queue in enumerate(self._queues) if queue]
        if not waiting:
            return 0, [], []
        net = min(waiting)[1]
        queue = self._queues[net]
        keys = [key for _, _, key in queue[: self._max_batch]]
        del queue[: self._max_batch]
        self._began = now, now + self._work(self._seconds[net], len(keys))
        return net, keys, []

    def _work(self, seconds: Sequence[float], count: int) -> float:
        full, rest = divmod(count, self._max_batch)
        once = seconds[(rest - 1).bit_length()] if rest else 0
        return self._stretch.factor * (full * seconds[-1] + once)


@dataclasses.dataclass(eq=False)
class _Request:
    x: np.ndarray
    future: concurrent.futures.Future[Reply]


class Dispatcher:
    """Runs models as a policy says, in one thread; a context manager.

    Args:
      policy: decides.
      models: what it decides between.
    """

    def __init__(self, policy: Policy, models: Sequence[Model]):
        self._policy, self._models = policy, models
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "Dispatcher":
        return self

    def __exit__(self, *_: Any) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def submit(self, x: np.ndarray, deadline: float) -> concurrent.futures.Future[Reply]:
        """Ask for the class of an example within a deadline in seconds."""
        request = _Request(x, concurrent.futures.Future())
        with self._changed:
            now = time.perf_counter()
            admitted = self._policy.admit(request, now + deadline, now)
            self._changed.notify()
        if not admitted:
            request.future.set_exception(OverloadedError("refused"))
        return request.future

    def _serve(self) -> None:
        while True:
            with self._changed:
                model, requests, refused = self._policy.next(time.perf_counter())
                if not requests and not refused:
                    if self._closing:
                        return
                    self._changed.wait()
            for request in refused:
                request.future.set_exception(OverloadedError("refused"))
            if requests:
                labels, outputs = self._models[model](np.stack([r.x for r in requests]))
                for request, label, output in zip(requests, labels, outputs, strict=True):
                    request.future.set_result(Reply(int(label), int(output)))
