"""The Prometheus metrics of the daemon: every object in one place, on a registry passed in."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.errors import InvalidRequest, TeacherError
from teacher_server.answers.table import AnswerTable

SECONDS = tuple(1e-4 * 2**k for k in range(20))
"""Bounds of durations: 0.1 ms, doubling, up to 52 s."""


def _powers_of_two(last: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(last + 1))


class Metrics:
    """What the daemon counts. Methods of requests: GetTeacher, Score, StreamScore (one a request on the stream)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers everything on `registry`, and the collectors of process, interpreter and garbage collector."""
        self.registry = registry
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

        self.requests = Counter(
            "teacher_requests_total", "Requests ended, by method and status.", ["method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "teacher_request_seconds",
            "From a request's arrival to its answer.",
            ["method"],
            buckets=SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge("teacher_in_flight_requests", "Requests under way.", registry=registry)
        self.open_streams = Gauge("teacher_open_streams", "Streams that callers hold open.", registry=registry)
        self.credit_outstanding = Gauge(
            "teacher_credit_positions", "Positions granted to streams and not spent.", registry=registry
        )
        self.rejected = Counter(
            "teacher_rejected_total",
            "Requests and calls refused, by reason: queue_full, draining, loading, invalid, unauthenticated, calls.",
            ["reason"],
            registry=registry,
        )
        self.expired = Counter(
            "teacher_expired_total", "Requests dropped before compute: their deadline had passed.", registry=registry
        )
        self.cancelled = Counter(
            "teacher_cancelled_total", "Accepted requests whose caller left before the answer.", registry=registry
        )

        self.queue_requests = Gauge(
            "teacher_queue_requests", "Requests of which rows are queued or computed.", registry=registry
        )
        self.queue_positions = Gauge(
            "teacher_queue_positions", "Positions of these that were not remembered.", registry=registry
        )
        self.queue_wait_seconds = Histogram(
            "teacher_queue_wait_seconds",
            "From a request's admission to the start of its first batch; 0 if all of it was remembered.",
            buckets=SECONDS,
            registry=registry,
        )

        self.batches = Counter(
            "teacher_batches_total",
            "Batches, by why they hold no more: idle (nothing more waited when the model was free), full, deadline "
            "(kept short for a request's deadline), drain.",
            ["reason"],
            registry=registry,
        )
        self.batch_requests = Histogram(
            "teacher_batch_requests",
            "Requests that a batch holds rows of.",
            buckets=_powers_of_two(10),
            registry=registry,
        )
        self.batch_positions = Histogram(
            "teacher_batch_positions",
            "Scored positions in a batch.",
            buckets=_powers_of_two(18),
            registry=registry,
        )
        self.batch_padded_tokens = Histogram(
            "teacher_batch_padded_tokens", "Padded tokens in a batch.", buckets=_powers_of_two(20), registry=registry
        )
        self.compute_seconds = Histogram(
            "teacher_compute_seconds", "The model's time for a batch.", buckets=SECONDS, registry=registry
        )
        self.scored_positions = Counter(
            "teacher_scored_positions_total", "Positions that the model has scored.", registry=registry
        )
        self.model = Info("teacher_model", "What is served.", registry=registry)

        for reason in ("queue_full", "draining", "loading", "invalid", "unauthenticated", "calls"):
            self.rejected.labels(reason)
        for reason in ("idle", "full", "deadline", "drain"):
            self.batches.labels(reason)

    @contextlib.contextmanager
    def request(self, method: str) -> Iterator[None]:
        """Counts and times one request; its code is the status of what the block raises."""
        code = "OK"
        started = time.perf_counter()
        self.in_flight.inc()
        try:
            yield
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except TeacherError as error:
            code = error.status
            if isinstance(error, InvalidRequest):
                self.rejected.labels("invalid").inc()
            raise
        except BaseException:
            code = "INTERNAL"
            raise
        finally:
            self.in_flight.dec()
            self.requests.labels(method, code).inc()
            self.request_seconds.labels(method).observe(time.perf_counter() - started)

    def set_queue(self, requests: int, positions: int) -> None:
        """What waits for the model now."""
        self.queue_requests.set(requests)
        self.queue_positions.set(positions)

    def batch_cut(self, reason: str, requests: int, positions: int, padded_tokens: int) -> None:
        """A batch was made."""
        self.batches.labels(reason).inc()
        self.batch_requests.observe(requests)
        self.batch_positions.observe(positions)
        self.batch_padded_tokens.observe(padded_tokens)

    def watch(self, rows: AnswerTable) -> None:
        """Exposes what a table of rows counts, read when somebody looks."""
        self.registry.register(_RowCollector(rows))


class _RowCollector(Collector):
    def __init__(self, rows: AnswerTable) -> None:
        self._rows = rows

    def collect(self) -> Iterable[Metric]:
        positions = CounterMetricFamily(
            "teacher_positions",
            "Scored positions asked for, by outcome: hit (remembered), wait (in flight already), miss (computed anew).",
            labels=["outcome"],
        )
        for outcome, count in zip(("hit", "wait", "miss"), self._rows.outcomes, strict=True):
            positions.add_metric([outcome], count)
        yield positions
        evictions = "Remembered rows that made way for others."
        yield CounterMetricFamily("teacher_cache_evictions", evictions, value=self._rows.evictions)
        yield GaugeMetricFamily("teacher_cache_rows", "Rows remembered or in flight.", value=self._rows.rows)
        yield GaugeMetricFamily("teacher_cache_bytes", "Memory of these rows.", value=self._rows.bytes)
        yield GaugeMetricFamily("teacher_cache_limit_bytes", "Memory that they may have.", value=self._rows.limit)
