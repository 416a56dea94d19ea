"""Counts of a service in the Prometheus text format."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Responses by status, answers by output, and seconds in the queue and in stages."""

    def __init__(self):
        self._registry = CollectorRegistry()

        def of(kind: type, name: str, about: str, *labels: str, **options: object):
            return kind(name, about, labels, registry=self._registry, **options)

        self._responses = of(Counter, "anytime_responses", "Responses by HTTP status.", "status")
        self._answers = of(Counter, "anytime_answers", "Answers by output, from 1.", "output")
        self._seconds = of(
            Histogram,
            "anytime_seconds",
            "Seconds of an answer in the queue and in stages.",
            "part",
            buckets=_SECONDS,
        )

    def record(self, status: int, answers: Sequence[tuple[int, float, float]]) -> None:
        """Count one response.

        Args:
          status: of HTTP.
          answers: output, seconds in the queue and seconds in stages of each answer in it.
        """
        self._responses.labels(str(status)).inc()
        for output, queue, stages in answers:
            self._answers.labels(str(output + 1)).inc()
            self._seconds.labels("queue").observe(queue)
            self._seconds.labels("stages").observe(stages)

    def text(self) -> str:
        """Return all counts."""
        return generate_latest(self._registry).decode()
