"""Decide which requests pass which stage of a net next, so that all are answered in time."""

import bisect
import itertools
import math
from collections.abc import Container, Hashable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

Key = TypeVar("Key", bound=Hashable)


class Batch(NamedTuple, Generic[Key]):
    """Requests to run through one stage together.

    Attributes:
      stage: index of the stage.
      keys: requests in order of their deadlines.
    """

    stage: int
    keys: list[Key]


class Decision(NamedTuple, Generic[Key]):
    """Result of `Scheduler.next`.

    Attributes:
      batch: the batch to run now, None if nothing waits.
      leaving: requests to answer now with the output that they have.
      refused: requests without an output, whose deadline has become too close for output 0.
    """

    batch: Batch[Key] | None
    leaving: list[Key]
    refused: list[Key]


class _Request(NamedTuple, Generic[Key]):
    deadline: float
    number: int  # breaks ties, so that keys are never compared
    key: Key


class Stretch:
    """The factor of measured times to which 95 % of the batches keep, at least 1.

    Each batch moves `factor` by a step (Robbins and Monro 1951), so that it follows a machine that
    becomes slower within tens of batches.
    """

    _SHARE, _STEP = 0.95, 0.05

    def __init__(self):
        self.factor = 1.0

    def follow(self, expected: float, seconds: float) -> None:
        """Count a batch that took so many seconds, where `factor` led to expect others."""
        late = seconds > expected * (1 + 1e-9)
        step = math.exp(self._STEP * (late - (1 - self._SHARE)))
        self.factor = max(1.0, self.factor * step)


class Scheduler(Generic[Key]):
    """Batches requests with deadlines through the stages of an anytime net, on one device.

    The scheduler never waits and never reads a clock: the caller passes the time. It computes
    nothing either; the caller runs the batches.

    - A request is admitted if output 0 for it and for all admitted before fits by the measured
      latencies. The scheduler keeps the batches by which it does.
    - In each stage, requests run in the order of their deadlines (earliest deadline first), in
      batches of which each ends by the earliest deadline in it.
    - Among stages, the one with the largest batch runs next, because larger batches cost less per
      request. A later stage runs only if output 0 for all waiting requests still fits afterward.
    - A request leaves with its latest output when its next stage does not fit any more, now or
      after the batch that is about to run.

    Every request has a deadline, so none waits forever. Where batches take longer than measured,
    as on a machine that has other work too, the scheduler stretches all figures until 95 % of the
    batches keep to them again.

    Args:
      seconds: `seconds[k][i]`, how long stage k takes for a batch of 2**i requests, `[K][sizes]`.
        Batches of other sizes take as long as the next larger one. The last size is the largest
        batch.
      capacity: number of requests between two stages, whose states are kept.

    Raises:
      ValueError: the stages have different numbers of sizes, a figure is not positive and finite,
        or `capacity` is smaller than the largest batch.
    """

    def __init__(self, seconds: Sequence[Sequence[float]], *, capacity: int):
        self._largest = _check(seconds, capacity)
        # A larger batch that was measured as faster than a smaller one is noise.
        self._seconds = [tuple(itertools.accumulate(map(float, s), max)) for s in seconds]
        # Time per request of output 0 in the best batches: no plan is faster.
        self._least = min(seconds / (1 << i) for i, seconds in enumerate(self._seconds[0]))
        self._stretch = Stretch()
        self._capacity = capacity
        self._waiting: list[list[_Request[Key]]] = [[] for _ in self._seconds]
        self._plan: list[int] = []  # sizes of the batches that give `_waiting[0]` output 0 in time
        self._running: tuple[int, list[_Request[Key]]] | None = None
        self._free = -math.inf  # when the running batch ends, by the latencies
        self._numbers = itertools.count()

    def __len__(self) -> int:
        """Return the number of admitted requests that have not left."""
        running = len(self._running[1]) if self._running else 0
        return sum(map(len, self._waiting)) + running

    def admit(self, key: Key, deadline: float, now: float) -> bool:
        """Take a request if output 0 fits for it and still fits for all admitted before.

        Args:
          key: names the request.
          deadline: when its answer must be ready, on the clock of `now`.
          now: the time, in seconds.

        Returns:
          Whether the request was taken.
        """
        request = _Request(deadline, next(self._numbers), key)
        first, start = self._waiting[0], max(now, self._free)
        place = bisect.bisect(first, request)
        if start + (place + 1) * self._least * self._stretch.factor > deadline:
            return False
        first.insert(place, request)
        plan = self._extended(start)
        if not self._in_time(plan, first, start):
            plan = self._greedy(first, start)
        if plan is None:
            del first[place]
            return False
        self._plan = plan
        return True

    def next(self, now: float) -> Decision[Key]:
        """Choose what to run next; call `finish` when the batch has run.

        Args:
          now: the time, in seconds.

        Raises:
          ValueError: the batch chosen before has not finished.
        """
        if self._running:
            raise ValueError("`next` must be called after `finish`; a batch is still running.")
        refused = self._renew_plan(now)
        leaving = self._drop_complete(now)
        batch = self._choose(now)
        if batch is None:
            return Decision(None, _keys(leaving), _keys(refused))
        k, requests = batch
        if k == 0:
            leaving += self._make_room(len(requests))
            del self._plan[0]
        del self._waiting[k][: len(requests)]
        self._running = batch
        self._free = now + self._cost(k, len(requests))
        leaving += self._drop_complete(self._free)
        return Decision(Batch(k, [r.key for r in requests]), _keys(leaving), _keys(refused))

    def finish(self, leaving: Container[Key] = (), *, seconds: float | None = None) -> list[Key]:
        """Return which requests of the batch that ran leave; the others wait for the next stage.

        Args:
          leaving: keys of requests that need no further output, such as confident ones.
          seconds: how long the batch took; as long as expected if not given.
        """
        if self._running is None:
            raise ValueError("`finish` must be called after `next` gave a batch; none is running.")
        (k, requests), self._running = self._running, None
        if seconds is not None:
            self._stretch.follow(self._cost(k, len(requests)), seconds)
        self._free = -math.inf
        if k + 1 == len(self._seconds):
            return _keys(requests)
        stay = [request for request in requests if request.key not in leaving]
        self._waiting[k + 1] = sorted(self._waiting[k + 1] + stay)
        return [request.key for request in requests if request.key in leaving]

    def _cost(self, k: int, size: int) -> float:
        return self._stretch.factor * self._seconds[k][(size - 1).bit_length()]

    def _greedy(self, requests: Sequence[_Request[Key]], start: float) -> list[int] | None:
        """Return sizes of batches that give all output 0 in time, or None if none were found.

        Each batch is the one with the least time per request among the batches in time.
        """
        sizes, i = [], 0
        while i < len(requests):
            size = self._best_size(0, requests, i, start)
            if size == 0:
                return None
            sizes.append(size)
            start += self._cost(0, size)
            i += size
        return sizes

    def _best_size(self, k: int, requests: Sequence[_Request[Key]], i: int, start: float) -> int:
        """Return the size of the batch from request i on with the least time per request.

        Returns:
          The size, 0 if not even request i alone is in time.
        """
        left, best, least = len(requests) - i, 0, math.inf
        for power in range(len(self._seconds[k])):
            size, seconds = min(1 << power, left), self._cost(k, 1 << power)
            if start + seconds > requests[i].deadline:
                break
            if seconds / size <= least:
                best, least = size, seconds / size
            if size == left:
                break
        return best

    def _extended(self, start: float) -> list[int]:
        """Return the kept plan with one more request, in the last batch or in a new one."""
        *earlier, last = self._plan or [0]
        longer = [*earlier, last + 1]
        if last < self._largest and self._in_time(longer, self._waiting[0], start):
            return longer
        return [*self._plan, 1]

    def _in_time(
        self, plan: Sequence[int], requests: Sequence[_Request[Key]], start: float
    ) -> bool:
        """Return whether each batch of a plan ends by its earliest deadline."""
        i = 0
        for size in plan:
            start += self._cost(0, size)
            if start > requests[i].deadline:
                return False
            i += size
        return True

    def _leaves_time(self, start: float) -> bool:
        """Return whether all that wait for output 0 get it in time if they start later."""
        first = self._waiting[0]
        return self._in_time(self._plan, first, start) or self._greedy(first, start) is not None

    def _renew_plan(self, now: float) -> list[_Request[Key]]:
        """Plan anew from now, and remove requests that miss output 0 as batches took too long."""
        first, late = self._waiting[0], []
        plan = self._greedy(first, now)
        if plan is None and self._in_time(self._plan, first, now):
            return []
        while plan is None:
            late.append(first.pop(self._first_late(now)))
            plan = self._greedy(first, now)
        self._plan = plan
        return late

    def _first_late(self, now: float) -> int:
        """Return the index of the first request that the greedy plan cannot serve in time."""
        first, i = self._waiting[0], 0
        while size := self._best_size(0, first, i, now):
            now += self._cost(0, size)
            i += size
        return i

    def _drop_complete(self, now: float) -> list[_Request[Key]]:
        """Remove requests whose next stage no longer fits from a time on, not even alone."""
        dropped = []
        for k in range(1, len(self._waiting)):
            end = now + self._cost(k, 1)
            dropped += [request for request in self._waiting[k] if request.deadline < end]
            self._waiting[k] = [request for request in self._waiting[k] if request.deadline >= end]
        return dropped

    def _choose(self, now: float) -> tuple[int, list[_Request[Key]]] | None:
        first = self._waiting[0]
        batches = [(k, self._later_batch(k, now)) for k in range(1, len(self._waiting))]
        # Output 0 for everybody goes before all else.
        batches = [
            (k, batch)
            for k, batch in batches
            if batch and self._leaves_time(now + self._cost(k, len(batch)))
        ]
        if first:
            batches.append((0, first[: self._plan[0]]))
        return min(batches, key=lambda batch: (-len(batch[1]), batch[1][0]), default=None)

    def _later_batch(self, k: int, now: float) -> list[_Request[Key]]:
        """Return the first requests for a later stage, as many as end by the earliest deadline."""
        waiting = self._waiting[k]
        return waiting[: self._best_size(k, waiting, 0, now)] if waiting else []

    def _make_room(self, size: int) -> list[_Request[Key]]:
        """Remove as many waiting requests with an output as the states of a batch need room for."""
        excess = sum(map(len, self._waiting[1:])) + size - self._capacity
        candidates = self._latest_stages_first()
        dropped = list(itertools.islice(candidates, max(0, excess)))
        gone = set(dropped)
        for k in range(1, len(self._waiting)):
            self._waiting[k] = [request for request in self._waiting[k] if request not in gone]
        return dropped

    def _latest_stages_first(self) -> Iterator[_Request[Key]]:
        return itertools.chain.from_iterable(self._waiting[:0:-1])


def _keys(requests: Sequence[_Request[Key]]) -> list[Key]:
    return [request.key for request in requests]


def _check(seconds: Sequence[Sequence[float]], capacity: int) -> int:
    """Return the size of the largest batch."""
    sizes = {len(stage) for stage in seconds}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            "`seconds` must have one row for each stage and in each the same number of sizes, got"
            f" rows of {sorted(sizes)} figures."
        )
    for stage in seconds:
        if not all(0 < figure < math.inf for figure in stage):
            raise ValueError(f"`seconds` must be positive and finite, got {stage}.")
    largest = 1 << (sizes.pop() - 1)
    if capacity < largest:
        raise ValueError(
            f"`capacity` must be at least the largest batch, {largest}, got {capacity}."
        )
    return largest
