"""Counters of one sidecar in Prometheus text form, resident memory among them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_STATUS = Path("/proc/self/status")


class Metrics:
    """One registry per sidecar. ``queue`` is asked whenever the numbers are read."""

    def __init__(self, name: str, queue: Callable[[], int]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter that nobody reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "limbic_sidecar_requests", "Answers by route and status", ["route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "limbic_sidecar_request_seconds", "Time to the end of an answer", ["route"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "limbic_sidecar_in_flight", "Requests being answered", registry=self.registry
        )
        waiting = Gauge("limbic_sidecar_queue", "Requests waiting", registry=self.registry)
        waiting.set_function(queue)
        info = Gauge("limbic_sidecar_info", "Always 1", ["name"], registry=self.registry)
        info.labels(name).set(1)

    def counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        """Another counter of this sidecar."""
        return Counter(name, text, labels, registry=self.registry)

    def histogram(self, name: str, text: str) -> Histogram:
        """Another histogram, of seconds, of this sidecar."""
        return Histogram(name, text, buckets=_SECONDS, registry=self.registry)

    def constant(self, name: str, text: str, **labels: str) -> None:
        """A series that is always 1 and tells by its labels how this sidecar works."""
        Gauge(name, text, list(labels), registry=self.registry).labels(**labels).set(1)

    def text(self) -> bytes:
        """All of it, in the Prometheus text format 0.0.4."""
        return generate_latest(self.registry)


def rss_mb() -> float:
    """Resident memory of this process in MB; 0.0 where the system does not say."""
    try:
        line = next(x for x in _STATUS.read_text().splitlines() if x.startswith("VmRSS:"))
    except (OSError, StopIteration):
        return 0.0
    return round(int(line.split()[1]) / 1024, 1)
