"""Serve an exported net over HTTP: `python -m experiments.serve FILE`.

FILE is what `python -m experiments.export` wrote, with FILE.json beside it. The program starts Ray
Serve on this machine, or uses the cluster at --address, whose nodes need this package too. POST an
image or a .npy array to /predict?deadline=MILLISECONDS; open / in a browser to try it.
"""

import dataclasses
import os
import signal
import sys
import threading
from pathlib import Path

import tyro

from experiments.app import command_line
from experiments.app.settings import require


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the server.

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
        if self.max_batch.bit_count() != 1:
            raise ValueError(f"max_batch={self.max_batch} must be a power of two.")


def main() -> None:
    """Command line."""
    try:
        config = command_line.read(Config, "experiments.serve", __doc__)
        # Replicas are what this machine is for; Ray would run them at niceness 15.
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            from experiments.serve import deployment
        except ImportError:
            sys.exit("error: experiments.serve needs Ray Serve: pip install 'osgd-jax[serve]'")
        deployment.start(config)
        stopped = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # after Ray has set its own handlers
            signal.signal(number, lambda *_: stopped.set())
        print(f"Serving {config.file} at http://{config.host}:{config.port}/", flush=True)
        stopped.wait()
        print("Answering the requests in progress, then stopping.", flush=True)
        deployment.stop()
    except (ValueError, OSError, RuntimeError) as error:  # Ray raises RuntimeErrors
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
