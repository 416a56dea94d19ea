"""Compare ways to serve under load: `python -m experiments.serve.load`.

Trains an anytime net and a zoo of separate nets of the same sizes, and sends requests with
deadlines at rates from 0.4 to 1.5 times the capacity of the last output. Arrivals are a Poisson
process that does not wait for answers (open loop). All ways see the same arrivals, examples and
machine.
"""

import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.app.data import Dataset
from experiments.lab import report
from experiments.lab.report import Table
from experiments.lab.statistics import interval
from experiments.serve import picture, ways
from experiments.serve.policies import Reply
from experiments.serve.ways import Config, Way, trained_nets, ways_to_serve
from osgd_jax._serving.scheduler import Scheduler

TITLE = "Serving under load"


class Outcome(NamedTuple):
    """One run.

    Attributes:
      in_time: share of the requests with an answer before their deadline.
      accuracy: of these answers; None without any, like the times.
      goodput: answers a second that are right and in time, over the arrivals a second.
      refused: share of the requests that were refused.
      p50: median seconds from arrival to answer.
      p99: 99th percentile of the same.
      outputs: share of each output among all answers.
    """

    in_time: float
    accuracy: float | None
    goodput: float
    refused: float
    p50: float | None
    p99: float | None
    outputs: tuple[float, ...]


def send(way: Way, dataset: Dataset, rate: float, config: Config, seed: int) -> Outcome:
    """Send requests at a rate for some seconds and wait for all answers."""
    rng = np.random.default_rng(seed)
    count = max(1, int(rate * config.seconds))
    arrivals = np.cumsum(rng.exponential(1 / rate, count))
    examples = rng.integers(dataset.test.size, size=count)
    ends = np.full(count, np.inf)
    replies: list[Any] = [None] * count
    with way.start() as served:
        start = time.perf_counter() + 0.05
        left, done = count, threading.Event()
        lock = threading.Lock()

        def receive(i: int, future: Any) -> None:
            nonlocal left
            if future.exception() is None:
                ends[i], replies[i] = time.perf_counter() - start, future.result()
            with lock:
                left -= 1
                if left == 0:
                    done.set()

        for i, (arrival, example) in enumerate(zip(arrivals, examples, strict=True)):
            while (wait := start + arrival - time.perf_counter()) > 0:
                time.sleep(wait)
            allowed = start + arrival + config.deadline - time.perf_counter()
            future = served.submit(dataset.test.inputs[example], max(0.0, allowed))
            future.add_done_callback(functools.partial(receive, i))
        done.wait()
    return _outcome(arrivals, ends, replies, dataset.test.labels[examples], config)


def _outcome(
    arrivals: np.ndarray,
    ends: np.ndarray,
    replies: Sequence[Any],
    labels: np.ndarray,
    config: Config,
) -> Outcome:
    answered = np.isfinite(ends)
    seconds = (ends - arrivals)[answered]
    in_time = ends <= arrivals + config.deadline
    right = np.array(
        [
            reply is not None and _label(reply) == label
            for reply, label in zip(replies, labels, strict=True)
        ]
    )
    outputs = [reply.output for reply in replies if reply is not None]
    return Outcome(
        in_time=float(in_time.mean()),
        accuracy=float(right[in_time].mean()) if in_time.any() else None,
        goodput=float((right & in_time).mean()),
        refused=float(1 - answered.mean()),
        p50=float(np.median(seconds)) if outputs else None,
        p99=float(np.quantile(seconds, 0.99)) if outputs else None,
        outputs=tuple((np.bincount(outputs, minlength=3) / max(1, len(outputs))).tolist()),
    )


def _label(reply: Any) -> int:
    return reply.label if isinstance(reply, Reply) else int(reply.logits.argmax())


def overhead(seconds: Sequence[Sequence[float]], rate: float, config: Config) -> float:
    """Return the scheduler's own time over the time of the stages that it starts.

    The requests and stages take their time on a clock of their simulation; only the scheduler's
    calls are timed.
    """
    scheduler = Scheduler(seconds, capacity=128)
    rng, spent, busy, now, end = np.random.default_rng(0), 0.0, 0.0, 0.0, 0.0
    arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * config.seconds)))
    running = False
    for key, arrival in enumerate(arrivals):
        while end <= arrival:
            start = time.perf_counter()
            if running:
                scheduler.finish()
            batch = scheduler.next(end).batch
            spent += time.perf_counter() - start
            running = batch is not None
            if batch is None:
                break
            work = seconds[batch.stage][(len(batch.keys) - 1).bit_length()]
            busy, end = busy + work, end + work
        now = float(arrival)
        start = time.perf_counter()
        scheduler.admit(key, now + config.deadline, now)
        spent += time.perf_counter() - start
        if not running:
            end = now
    return spent / busy


def measure(config: Config, progress: Callable[[str], None]) -> dict[str, Any]:
    """Train, serve, draw, and return the results."""
    progress("training")
    dataset = ways.load(config)
    compared, about = ways_to_serve(config, dataset, trained_nets(config, dataset))
    rows = []
    for repetition in range(config.repetitions):
        for load in config.loads:
            for way in compared:
                progress(f"repetition {repetition}, load {load:g}, {way.name}")
                outcome = send(way, dataset, load * about["capacity"], config, repetition)
                row = {"way": way.name, "load": load, "repetition": repetition}
                rows.append(row | outcome._asdict())
    picture.draw(rows, config.output.with_suffix(".png"))
    busiest = max(config.loads) * about["capacity"]
    spent = overhead(about["stage_seconds"], busiest, config)
    return {**about, "scheduler_overhead": spent, "runs": rows}


def tables(results: dict[str, Any]) -> list[Table]:
    """Return the means of each way at each load with their 95 % intervals, and the overhead."""
    columns = ("load", "way", "in time, %", "right, %", "right in time, %", "p50, ms", "p99, ms")
    shown = Table("Requests with a deadline", columns, words=2)
    runs = results["runs"]
    for load, way in dict.fromkeys((row["load"], row["way"]) for row in runs):
        rows = [row for row in runs if (row["load"], row["way"]) == (load, way)]
        shares = [_mean(rows, field, 100, ".1f") for field in ("in_time", "accuracy", "goodput")]
        times = [_mean(rows, field, 1000, ".0f") for field in ("p50", "p99")]
        shown.add(f"{load:g}", way, *shares, *times)
    spent = Table("Scheduler, at the highest load", ("time over that of the stages, %",), words=0)
    spent.add(f"{100 * results['scheduler_overhead']:.1f}")
    return [shown, spent]


def _mean(rows: Sequence[dict[str, Any]], field: str, unit: float, spec: str) -> str:
    values = [unit * row[field] for row in rows if row[field] is not None]
    return format(interval(values), spec) if values else "–"


if __name__ == "__main__":
    report.run("experiments.serve.load", __doc__, Config, measure, tables)
