"""Measure what HTTP adds to a request: `python -m experiments.serve.overhead FILE`.

Starts `python -m experiments.serve FILE` on this machine, sends requests one at a time and from 16
threads, and compares the time of a request with the time that the server counts for it.
"""

import concurrent.futures
import dataclasses
import http.client
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from experiments.app.settings import require
from experiments.lab import report
from experiments.lab.report import Table
from experiments.predict import description


@dataclasses.dataclass(frozen=True)
class Config:
    """The measurement.

    Attributes:
      file: the exported net.
      port: port to serve at.
      requests: number of requests of each kind.
      output: file for the figures.
    """

    file: tyro.conf.Positional[Path]
    port: int = 8000
    requests: int = 500
    output: Path = Path("runs/overhead.jsonl")

    def __post_init__(self):
        require(self, fields=("requests",), at_least=1)


def measure(config: Config, progress: Callable[[str], None]) -> dict[str, Any]:
    """Start the server, send the requests, and return all that the output holds."""
    progress("starting the server")
    body = io.BytesIO()
    np.save(body, np.zeros(description(config.file)["input_shape"], np.float32))
    command = [sys.executable, "-m", "experiments.serve", config.file, "--port", config.port]
    server = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
    try:
        if not server.stdout or not server.stdout.readline().startswith("Serving"):
            raise ValueError("the server did not start; run `python -m experiments.serve` alone.")
        rows = [_sent(config, body.getvalue(), threads) for threads in (1, 16)]
    finally:
        server.terminate()
        server.wait()
    return {"rows": rows}


def _sent(config: Config, body: bytes, threads: int) -> dict[str, float]:
    def ask(_: int) -> tuple[float, float]:
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", config.port, timeout=60)
        connection.request("POST", "/predict", body)
        (answer,) = json.loads(connection.getresponse().read())["answers"]
        connection.close()
        seconds = time.perf_counter() - start
        return seconds, seconds - (answer["queue_ms"] + answer["stages_ms"]) / 1000

    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(ask, range(50)))  # warm
        start = time.perf_counter()
        seconds = np.array(list(pool.map(ask, range(config.requests))))
        rate = config.requests / (time.perf_counter() - start)
    total, added = np.median(seconds, axis=0)
    return {"threads": threads, "seconds": total, "added": added, "per_second": rate}


def tables(results: dict[str, Any]) -> list[Table]:
    """Return the medians of a request's time and of what HTTP adds to it."""
    shown = Table("Through HTTP", ("client threads", "request, ms", "of it HTTP, ms", "requests/s"))
    for row in results["rows"]:
        times = [f"{1000 * row[field]:.1f}" for field in ("seconds", "added")]
        shown.add(row["threads"], *times, f"{row['per_second']:.0f}")
    return [shown]


if __name__ == "__main__":
    report.run("experiments.serve.overhead", __doc__, Config, measure, tables)
