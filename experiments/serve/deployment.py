"""The server as a deployment of Ray Serve."""

import tempfile
import time
from pathlib import Path
from typing import Any

import ray  # pyright: ignore[reportMissingImports] - optional
from ray import serve  # pyright: ignore[reportMissingImports] - optional
from starlette.requests import Request  # pyright: ignore[reportMissingImports]
from starlette.responses import Response  # pyright: ignore[reportMissingImports]

from experiments.predict import description
from experiments.serve.metrics import Metrics
from experiments.serve.service import Limits, Service
from osgd_jax import AnytimePredictor, AnytimeServer

# Seconds for the last answers to pass Ray's proxy.
_DELIVERY = 0.5


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


def start(config: Any) -> None:
    """Start the service and return once it answers.

    Args:
      config: the settings of `experiments.serve`.

    Raises:
      ValueError: the file was not written by `experiments.export`.
    """
    about = description(config.file)
    ray.init(address=config.address, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": config.host, "port": config.port})
    metrics = ray.remote(Metrics).options(num_cpus=0, max_restarts=-1).remote()
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
