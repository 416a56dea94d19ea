"""Serve an exported net over HTTP: `python -m experiments.serve FILE`.

FILE is what `python -m experiments.export` wrote, with FILE.json beside it. The program starts Ray
Serve on this machine, or uses the cluster at --address, whose nodes need this package too. POST an
image or a .npy array to /predict?deadline=MILLISECONDS; open / in a browser to try it.
"""

import dataclasses
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import tyro

from experiments import command_line
from experiments.predict import description
from experiments.serve.metrics import Metrics
from experiments.serve.service import Limits, Service
from experiments.settings import require
from osgd_jax import AnytimePredictor, AnytimeServer

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Replicas are what this machine is for; Ray would run them at niceness 15.
os.environ.setdefault("RAY_worker_niceness", "0")

try:
    import ray  # pyright: ignore[reportMissingImports] - optional
    from ray import serve  # pyright: ignore[reportMissingImports] - optional
    from starlette.requests import Request  # pyright: ignore[reportMissingImports]
    from starlette.responses import Response  # pyright: ignore[reportMissingImports]
except ImportError:
    sys.exit("error: experiments.serve needs Ray Serve: pip install 'osgd-jax[serve]'")


# Seconds for the last answers to pass Ray's proxy.
_DELIVERY = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """What to serve, and where.

    Attributes:
      file: the exported net.
      host: address to listen on.
      port: port to listen on.
      replicas: processes that answer, each with a copy of the net.
      gpus: GPUs of each replica.
      address: of a Ray cluster; starts one on this machine if not given.
      deadline: milliseconds for requests that name no deadline, and the most one may ask for.
      max_batch: requests that run together, at most; a power of two.
      max_body: bytes of a request, at most.
    """

    file: tyro.conf.Positional[Path]
    host: str = "127.0.0.1"
    port: int = 8000
    replicas: int = 1
    gpus: float = 0
    address: str | None = None
    deadline: float = 1000
    max_batch: int = 32
    max_body: int = 16_000_000

    def __post_init__(self):
        require(self, fields=("replicas", "max_batch", "max_body"), at_least=1)
        require(self, fields=("port",), at_least=1, at_most=65535)
        require(self, fields=("deadline",), above=0)
        require(self, fields=("gpus",), at_least=0)


class _RayRecorder:
    """Counts in one process for all replicas."""

    def __init__(self, metrics: Any):
        self._metrics = metrics

    def record(self, status: int, answers: Any) -> None:
        self._metrics.record.remote(status, answers)

    async def text(self) -> str:
        return await self._metrics.text.remote()


@serve.deployment(max_ongoing_requests=1024, graceful_shutdown_timeout_s=30)
class Replica:
    """One copy of the net.

    Args:
      file: bytes of the exported net.
      about: what was written beside it.
      limits: of a request.
      max_batch: requests that run together, at most.
      metrics: actor that counts for all replicas.
    """

    def __init__(
        self, file: bytes, about: dict[str, Any], limits: Limits, max_batch: int, metrics: Any
    ):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "net.anytime"
            path.write_bytes(file)
            predictor = AnytimePredictor.load(path)
        self._server = AnytimeServer(
            predictor,
            input_shape=about["input_shape"],
            max_batch=max_batch,
            capacity=4 * max_batch,
        )
        self._service = Service(self._server, about, limits, _RayRecorder(metrics))

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        return await self._service.handle(request)

    def __del__(self):
        if hasattr(self, "_server"):
            self._server.close()


def start(config: Config) -> None:
    """Start the service and return once it answers.

    Raises:
      ValueError: the file was not written by `experiments.export`.
    """
    about = description(config.file)
    ray.init(address=config.address, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": config.host, "port": config.port})
    metrics = ray.remote(Metrics).options(num_cpus=0).remote()
    limits = Limits(config.deadline / 1000, config.max_body, examples=config.max_batch)
    options = {"num_cpus": 0, "num_gpus": config.gpus}
    deployment: Any = Replica
    replica = deployment.options(num_replicas=config.replicas, ray_actor_options=options)
    bound = replica.bind(config.file.read_bytes(), about, limits, config.max_batch, metrics)
    serve.run(bound)


def stop() -> None:
    """Answer the requests that wait and stop."""
    serve.delete("default")  # waits for the replicas
    time.sleep(_DELIVERY)
    serve.shutdown()
    ray.shutdown()


def main() -> None:
    """Command line."""
    try:
        config = command_line.read(Config, "experiments.serve", __doc__)
        start(config)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own handlers
            signal.signal(number, lambda *_: stopped.set())
        print(f"Serving {config.file} at http://{config.host}:{config.port}/", flush=True)
        stopped.wait()
        print("Answering those that wait, then stopping.", flush=True)
        stop()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
