"""The HTTP routes over an `AnytimeServer`."""

import asyncio
import io
import json
import logging
import threading
import time
import tokenize
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from starlette.concurrency import run_in_threadpool  # pyright: ignore[reportMissingImports]
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import (  # pyright: ignore[reportMissingImports]
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)

from experiments.app.data.images import CorruptImageError, Kind, cut_square, read, size_of
from osgd_jax import AnytimeServer, OverloadedError, ServedAnswer

_PAGE = Path(__file__).with_name("page.html")
_NPY = b"\x93NUMPY"
_PIXELS = 50_000_000  # a small file may hold an image that fills the memory
# NumPy parses headers with `ast`, which raises a SystemError in Python 3.11 now and then where two
# threads parse at once: here, or in any library.
_PARSING = threading.Lock()
_TRIES = 10


class Limits(NamedTuple):
    """Limits of a request.

    Attributes:
      deadline: seconds for requests that name none, and the most that one may ask for.
      body_bytes: largest body.
      examples: most examples in one body.
      body_seconds: time for the body to arrive.
    """

    deadline: float
    body_bytes: int
    examples: int
    body_seconds: float = 10.0


class Recorder(Protocol):
    """Counts of responses; `Metrics` in another process."""

    def record(self, status: int, answers: Sequence[tuple[int, float, float]]) -> None:
        """Count one response."""
        ...

    async def text(self) -> str:
        """Return all counts in the Prometheus text format."""
        ...


class _RefusedError(Exception):
    """A request that gets a 4xx status and one sentence."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


class Service:
    """Answers HTTP requests.

    Args:
      server: runs the net.
      about: what `experiments.export` wrote beside the file: classes, input_shape and dtype.
      limits: of a request.
      recorder: takes the counts.
    """

    def __init__(
        self, server: AnytimeServer, about: dict[str, Any], limits: Limits, recorder: Recorder
    ):
        self._server, self._about, self._limits, self._recorder = server, about, limits, recorder
        self._shape = tuple(about["input_shape"])
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
            "/": ("GET", self._page),
            "/healthz": ("GET", self._health),
            "/metrics": ("GET", self._metrics),
            "/predict": ("POST", self._predict),
        }

    async def handle(self, request: Request) -> Response:
        """Answer a request; never raises."""
        method, route = self._routes.get(request.url.path, ("", None))
        if route is None:
            return _error(404, f"There is no {request.url.path}; use POST /predict.")
        if request.method != method:
            return _error(405, f"{request.url.path} takes {method}, not {request.method}.")
        try:
            return await route(request)
        except Exception:  # a client gets one sentence; the log gets the rest
            logging.getLogger(__name__).exception("A request failed.")
            return _error(500, "The server failed on this request.")

    async def _page(self, request: Request) -> Response:
        milliseconds = str(round(1000 * self._limits.deadline))
        return HTMLResponse(_PAGE.read_text().replace("{{deadline}}", milliseconds))

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "waiting": len(self._server)})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse(await self._recorder.text())

    async def _predict(self, request: Request) -> Response:
        start = time.perf_counter()
        answers: list[Any] = []
        try:
            deadline, limits = self._options(request)
            body = await self._body(request)
            examples = await run_in_threadpool(self._examples, body)
            left = max(0.0, start + deadline - time.perf_counter())
            futures = [self._server.submit(x, deadline=left, **limits) for x in examples]
            waiting = map(asyncio.wrap_future, futures)
            answers = await asyncio.gather(*waiting, return_exceptions=True)
            response = self._response(answers)
        except _RefusedError as error:
            response = _error(error.status, str(error))
        except ValueError as error:
            response = _error(400, str(error))
        except RuntimeError:  # the server is closing
            response = _error(503, "The server is shutting down; ask another one.")
        served = [a for a in answers if isinstance(a, ServedAnswer)]
        self._recorder.record(
            response.status_code, [(a.output, a.elapsed - a.stages, a.stages) for a in served]
        )
        return response

    def _options(self, request: Request) -> tuple[float, dict[str, Any]]:
        """Return the deadline in seconds, and the confidence if there is one."""
        unknown = set(request.query_params) - {"deadline", "confidence"}
        if unknown:
            raise _RefusedError(
                400, f"There is no parameter {min(unknown)}; use deadline and confidence."
            )
        largest = 1000 * self._limits.deadline
        deadline = _number(request, "deadline", largest)
        if not 0 < deadline <= largest:
            raise _RefusedError(
                400, f"deadline must be above 0 and at most {largest:g} ms, got {deadline:g}."
            )
        confidence = _number(request, "confidence", None)
        return deadline / 1000, {} if confidence is None else {"confidence": confidence}

    async def _body(self, request: Request) -> bytes:
        most = self._limits.body_bytes
        too_large = _RefusedError(413, f"The body must have at most {most} bytes.")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._limits.body_seconds):
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > most:
                        raise too_large
        except TimeoutError:
            raise _RefusedError(
                408, f"The body must arrive within {self._limits.body_seconds:g} seconds."
            ) from None
        except _RefusedError:
            raise
        except Exception as error:  # Starlette's or Ray's, whichever notices first
            raise _RefusedError(
                400, "The connection was closed before the body had arrived."
            ) from error
        return b"".join(parts)

    def _examples(self, body: bytes) -> np.ndarray:
        """Return the examples in a body, `[n, *input_shape]`."""
        if not body:
            raise _RefusedError(400, "The body must be an image or a .npy array, got no bytes.")
        if body.startswith(_NPY):
            return self._arrays(body)
        if len(self._shape) != 3:
            raise _RefusedError(400, f"The net takes arrays of shape {self._shape}; send .npy.")
        kind = Kind(self._shape[-1], self._about["dtype"])
        try:
            width, height = size_of(io.BytesIO(body), "The image")
            if width * height > _PIXELS:
                raise _RefusedError(413, f"The image must have at most {_PIXELS} pixels.")
            image = cut_square(read(io.BytesIO(body), kind, "The image"), self._shape[0])
        except CorruptImageError as error:
            raise _RefusedError(400, str(error)) from None
        return image[None].astype(np.float32)

    def _arrays(self, body: bytes) -> np.ndarray:
        array = _load(body)
        if array.shape == self._shape:
            array = array[None]
        if array.shape[1:] != self._shape or not 1 <= len(array) <= self._limits.examples:
            raise _RefusedError(
                400,
                f"The array must have the shape {self._shape}, or one axis more with 1 to"
                f" {self._limits.examples} examples, got {array.shape}.",
            )
        if array.dtype.kind not in "uif":
            raise _RefusedError(400, f"The array must hold numbers, got {array.dtype}.")
        return array.astype(np.float32)

    def _response(self, answers: Sequence[Any]) -> Response:
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, OverloadedError):
                return _error(500, "The net failed on this request.")
        if all(isinstance(answer, OverloadedError) for answer in answers):
            return _error(503, "Overloaded: no answer fits before the deadline.")
        return JSONResponse({"answers": [self._described(answer) for answer in answers]})

    def _described(self, answer: Any) -> dict[str, Any]:
        if isinstance(answer, OverloadedError):
            return {"error": "Overloaded: no answer fits before the deadline."}
        powers = np.exp(answer.logits.astype(np.float64) - answer.logits.max())
        shares = (powers / powers.sum()).tolist()
        classes = self._about["classes"]
        return {
            "class": classes[int(answer.logits.argmax())],
            "probabilities": dict(zip(classes, shares, strict=True)),
            "output": answer.output + 1,
            "queue_ms": round(1000 * (answer.elapsed - answer.stages), 3),
            "stages_ms": round(1000 * answer.stages, 3),
            "late_ms": round(1000 * answer.lateness, 3),
        }


def _load(body: bytes) -> np.ndarray:
    """Read a .npy file whose header promises no more than the body holds."""
    file = io.BytesIO(body)
    try:
        version = np.lib.format.read_magic(file)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = _parsed(read_header, file)
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(shape, dtype)
        data = np.frombuffer(body, dtype, offset=file.tell())
        return data.reshape(shape, order="F" if fortran else "C")
    except (
        ValueError,
        KeyError,
        SyntaxError,
        tokenize.TokenError,
        OverflowError,
        MemoryError,
        RecursionError,
    ):
        raise _RefusedError(400, "The body is not a readable .npy array of numbers.") from None


def _parsed(read_header: Callable[[Any], Any], file: io.BytesIO) -> Any:
    start = file.tell()
    with _PARSING:
        for _ in range(_TRIES - 1):
            try:
                return read_header(file)
            except SystemError:
                file.seek(start)
        return read_header(file)


def _number(request: Request, name: str, default: Any) -> Any:
    text = request.query_params.get(name)
    if text is None:
        return default
    try:
        return float(text)
    except ValueError:
        raise _RefusedError(400, f"{name} must be a number, got {text!r}.") from None


def _error(status: int, message: str) -> Response:
    return Response(json.dumps({"error": message}), status, media_type="application/json")
