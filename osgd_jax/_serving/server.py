"""Answer requests of many threads by their deadlines, in batches through a net's stages."""

import concurrent.futures
import dataclasses
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np

from osgd_jax._host_arrays import as_array
from osgd_jax._serving.inputs import check_input
from osgd_jax._serving.latencies import Latencies, measure
from osgd_jax._serving.limits import check_deadline
from osgd_jax._serving.predictor import AnytimePredictor
from osgd_jax._serving.rules import Exit, make_exit
from osgd_jax._serving.scheduler import Batch, Decision, Scheduler
from osgd_jax._serving.states import States
from osgd_jax._validation import check_positive

_REPEATS = 20


class OverloadedError(RuntimeError):
    """A request is refused because not even output 0 fits before its deadline.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> predictor = osgd_jax.AnytimePredictor(net)
      >>> with osgd_jax.AnytimeServer(predictor, input_shape=(4, 4, 1), max_batch=1) as server:
      ...     future = server.submit(jnp.ones((4, 4, 1)), deadline=0.0)
      >>> isinstance(future.exception(), osgd_jax.OverloadedError)
      True
    """


@dataclasses.dataclass(frozen=True, eq=False)
class ServedAnswer:
    """Result of a request to an `AnytimeServer`.

    Attributes:
      logits: `[…, classes]`.
      output: index of the output that they are from.
      elapsed: seconds from `submit` to the answer.
      stages: seconds of these in which the batches with this request ran.
      lateness: seconds by which the answer came after the deadline; 0 where it was kept.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> predictor = osgd_jax.AnytimePredictor(net)
      >>> with osgd_jax.AnytimeServer(predictor, input_shape=(4, 4, 1), max_batch=1) as server:
      ...     answer = server.submit(jnp.ones((4, 4, 1)), deadline=60.0).result()
      >>> answer.output, answer.lateness, answer.stages > 0
      (1, 0.0, True)
    """

    logits: np.ndarray
    output: int
    elapsed: float
    stages: float
    lateness: float


@dataclasses.dataclass(eq=False)
class _Request:
    x: np.ndarray
    leave: Exit | None
    start: float
    deadline: float
    future: concurrent.futures.Future[ServedAnswer]
    slot: int = -1
    output: int = -1  # none yet
    logits: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0))
    stages: float = 0.0
    error: Exception | None = None  # of its rule


class AnytimeServer:
    """Answer single examples by their deadlines, on one device.

    Requests that wait at the same stage run as one batch. Under light load all requests get the
    last output. As the load grows, requests leave with earlier outputs, and are refused only when
    not even output 0 fits. The results of the stages are kept until a request leaves, so nothing is
    computed twice.

    A server compiles all stages for all batch sizes and measures them when it is made, which takes
    seconds to minutes. `submit` is thread-safe. A server is a context manager that closes it at the
    end.

    Args:
      predictor: the net to serve; the server shares its weights.
      input_shape: of one example, without the batch axis. May be left out when the predictor has
        run on inputs of one shape only.
      max_batch: largest batch, a power of two.
      capacity: number of requests whose states are kept between stages; at least `max_batch`. The
        states of `capacity` examples take memory on the device.

    Raises:
      ValueError: an argument is invalid.

    Example:
      >>> import jax.numpy as jnp
      >>> import osgd_jax
      >>> from flax import nnx
      >>> net = osgd_jax.nets.BranchedResNet(
      ...     num_classes=3, num_outputs=2, in_channels=1, widths=(4,), blocks=(2,),
      ...     rngs=nnx.Rngs(0),
      ... )
      >>> predictor = osgd_jax.AnytimePredictor(net)
      >>> with osgd_jax.AnytimeServer(predictor, input_shape=(4, 4, 1), max_batch=2) as server:
      ...     answer = server.submit(jnp.ones((4, 4, 1)), deadline=60.0).result()
      >>> answer.output, answer.logits.shape
      (1, (3,))
    """

    def __init__(
        self,
        predictor: AnytimePredictor,
        *,
        input_shape: Sequence[int] | None = None,
        max_batch: int = 32,
        capacity: int = 128,
    ):
        self._model = predictor._runner.model
        self._num_outputs = predictor.num_outputs
        if check_positive("max_batch", max_batch).bit_count() != 1:
            raise ValueError(f"`max_batch` must be a power of two, got {max_batch}.")
        if check_positive("capacity", capacity) < max_batch:
            raise ValueError(f"`capacity` must be at least max_batch={max_batch}, got {capacity}.")
        self._states = States(predictor._runner, predictor._example(input_shape), capacity)
        self._clock = time.perf_counter
        sizes = [1 << power for power in range(max_batch.bit_length())]
        self.latencies = _measure(self._states, self._num_outputs, sizes, self._clock)
        self._capacity = capacity
        self._scheduler: Scheduler[_Request] = Scheduler(self.latencies, capacity=capacity)
        self._admitted: set[_Request] = set()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="AnytimeServer", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Return the number of requests that wait or run."""
        return len(self._admitted)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def submit(
        self,
        x: Any,
        *,
        deadline: float,
        confidence: Any = None,
        rule: str | Callable = "confidence",
    ) -> concurrent.futures.Future[ServedAnswer]:
        """Ask for an answer to one example.

        Args:
          x: `input_shape`, floating; integers for a net that takes no floats.
          deadline: seconds from now by which the answer must be ready, finite.
          confidence: as in `AnytimePredictor.predict`: the request leaves with the first output
            that is sure enough, and by the deadline in any case.
          rule: as in `AnytimePredictor.predict`.

        Returns:
          A future of the answer. It fails with `OverloadedError` if output 0 does not fit before
          the deadline, now or, where batches take longer than measured, later.

        Raises:
          ValueError: an argument is invalid.
          RuntimeError: the server is closed.
        """
        start = self._clock()
        x = np.asarray(check_input(self._model, as_array("x", x)[None]))[0]
        self._states.check(x)
        if not math.isfinite(check_deadline(deadline)):
            raise ValueError(
                f"`deadline` must be finite, so that no request waits, got {deadline}."
            )
        leave = make_exit(confidence, rule, self._num_outputs)
        future: concurrent.futures.Future[ServedAnswer] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        request = _Request(x, leave, start, start + float(deadline), future)
        with self._changed:
            if self._closing:
                raise RuntimeError("The server is closed and takes no further requests.")
            admitted = self._scheduler.admit(request, request.deadline, self._clock())
            if admitted:
                self._admitted.add(request)
                self._changed.notify()
        if not admitted:
            future.set_exception(_overloaded())
        return future

    def close(self) -> None:
        """Refuse further requests, answer the waiting ones, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _serve(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                try:
                    self._run(batch)
                except Exception as error:
                    self._fail(error)
        finally:  # also where starting anew fails: nobody waits for a thread that has ended
            with self._changed:
                self._closing = True
            for request in self._admitted:
                request.future.set_exception(RuntimeError("The server stopped after an error."))

    def _next_batch(self) -> Batch[_Request] | None:
        """Wait for requests; return None when the server is closed and all are answered."""
        while True:
            with self._changed:
                decision = self._scheduler.next(self._clock())
                if decision.batch is None and not (decision.leaving or decision.refused):
                    if self._closing:
                        return None
                    self._changed.wait()
            self._settle(decision)
            if decision.batch is not None:
                return decision.batch

    def _settle(self, decision: Decision[_Request]) -> None:
        for request in decision.refused:
            self._admitted.discard(request)
            request.future.set_exception(_overloaded())
        self._answer(decision.leaving)

    def _run(self, batch: Batch[_Request]) -> None:
        k, requests = batch.stage, batch.keys
        start = self._clock()
        if k == 0:
            for request, slot in zip(requests, self._states.take(len(requests)), strict=True):
                request.slot = slot
        slots = [request.slot for request in requests]
        logits = self._states.advance(k, slots, [request.x for request in requests])
        seconds = self._clock() - start
        sure = set()
        for request, row in zip(requests, logits, strict=True):
            if self._is_sure(request, k, row):
                sure.add(request)
            request.output, request.logits = k, row
            request.stages += seconds
        with self._changed:
            leaving = self._scheduler.finish(sure, seconds=seconds)
        self._answer(leaving)

    def _is_sure(self, request: _Request, k: int, row: np.ndarray) -> bool:
        if request.leave is None:
            return False
        before = None if request.output < 0 else request.logits[None]
        try:
            return bool(request.leave.sure(k, row[None], before)[0])
        except Exception as error:  # a rule of the caller fails its own request alone
            request.error = error
            return True

    def _answer(self, requests: Sequence[_Request]) -> None:
        now = self._clock()
        for request in requests:
            self._states.free(request.slot)
            self._admitted.discard(request)
            if request.error is not None:
                request.future.set_exception(request.error)
                continue
            late = max(0.0, now - request.deadline)
            request.future.set_result(
                ServedAnswer(
                    request.logits, request.output, now - request.start, request.stages, late
                )
            )

    def _fail(self, error: Exception) -> None:
        """Fail all requests and start anew: a program that failed may have lost the states."""
        with self._changed:
            failed, self._admitted = self._admitted, set()
            self._scheduler = Scheduler(self.latencies, capacity=self._capacity)
        for request in failed:
            request.future.set_exception(error)
        self._states.clear()


def _overloaded() -> OverloadedError:
    return OverloadedError("output 0 does not fit before the deadline; allow more time or retry.")


class _Rehearsal:
    """A batch of blank examples, to measure the stages; only while no request has a slot."""

    def __init__(self, states: States, size: int):
        self._states, self._slots = states, range(size)
        self._examples = [states.example] * size

    def advance(self, first: int, last: int) -> np.ndarray:
        """Run one stage."""
        del last
        return self._states.advance(first, self._slots, self._examples)

    def wait(self) -> None:
        """Return at once: the answer is on the host."""


def _measure(
    states: States, num_outputs: int, sizes: Sequence[int], clock: Callable[[], float]
) -> list[tuple[float, ...]]:
    """Return the seconds of each stage that 95 % of its runs keep to, by size, `[K][sizes]`."""
    latencies = Latencies()  # one measurement at a time in the process
    for size in sizes:
        start = lambda size=size: _Rehearsal(states, size)  # noqa: E731
        latencies.renew(size, lambda start=start: measure(start, num_outputs, _REPEATS, clock))
    return list(zip(*latencies.as_dict().values(), strict=True))
