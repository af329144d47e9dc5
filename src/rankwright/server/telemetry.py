"""The server's figures, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from rankwright.server.batcher import BatchStats

# a second series for each, which says when it began
disable_created_metrics()  # type: ignore[no-untyped-call]

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = tuple(2**power for power in range(4, 18))
REQUESTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Telemetry:
    """Counters of one server, in a registry of their own.

    Args:
        in_flight: how many requests are being answered.
    """

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        self.requests = Counter(
            "rankwright_requests",
            "Requests, by path and status; 499 where the client left.",
            ("path", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "rankwright_request_seconds",
            "Time from a request's head to its answer.",
            ("path",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.pairs = Counter(
            "rankwright_pairs", "Documents scored.", ("model",), registry=self.registry
        )
        self.tokens = Counter(
            "rankwright_tokens",
            "Tokens of the scored pairs, each with its prompt and query.",
            ("model",),
            registry=self.registry,
        )
        self.truncated = Counter(
            "rankwright_truncated",
            "Documents and queries that were cut.",
            ("model", "what"),
            registry=self.registry,
        )
        self.errors = Counter(
            "rankwright_errors",
            "Requests that were not answered, by reason.",
            ("reason",),
            registry=self.registry,
        )
        self.batch_tokens = Histogram(
            "rankwright_batch_tokens",
            "Tokens computed at a time.",
            buckets=TOKENS,
            registry=self.registry,
        )
        self.batch_requests = Histogram(
            "rankwright_batch_requests",
            "Requests that shared a batch.",
            buckets=REQUESTS,
            registry=self.registry,
        )
        self.batch_seconds = Histogram(
            "rankwright_batch_seconds", "Time of a batch.", buckets=SECONDS, registry=self.registry
        )
        Gauge(
            "rankwright_in_flight", "Requests being answered.", registry=self.registry
        ).set_function(in_flight)
        self._waiting = {
            name: Gauge(f"rankwright_queue_{name}", text, registry=self.registry)
            for name, text in (
                ("requests", "Requests with documents that wait for a batch."),
                ("tokens", "Tokens that wait for a batch."),
            )
        }

    def watch_queue(self, requests: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Read the queue's length whenever the figures are asked for."""
        self._waiting["requests"].set_function(requests)
        self._waiting["tokens"].set_function(tokens)

    def batch(self, stats: BatchStats) -> None:
        """Count a batch."""
        self.batch_tokens.observe(stats.tokens)
        self.batch_requests.observe(stats.requests)
        self.batch_seconds.observe(stats.seconds)

    def text(self) -> bytes:
        """Everything, as Prometheus scrapes it."""
        return generate_latest(self.registry)
