"""The Prometheus metrics of the daemon: every object in one place, on a registry passed in."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from shared.errors import InvalidRequest, TeacherError
from teacher_server.answers.table import AnswerTable
from teacher_server.request import CURRENT, Request

SECONDS = tuple(1e-4 * 2**k for k in range(20))
"""Bounds of durations: 0.1 ms, doubling, up to 52 s."""


class _Label(enum.StrEnum):
    """Values of a label, each with what it means."""

    meaning: str

    def __new__(cls, value: str, meaning: str) -> _Label:
        label = str.__new__(cls, value)
        label._value_, label.meaning = value, meaning
        return label

    @classmethod
    def explained(cls) -> str:
        """All values with their meanings."""
        return ", ".join(f"{label} ({label.meaning})" for label in cls)


class CutReason(_Label):
    """Why a batch holds no more."""

    IDLE = "idle", "nothing more waited when the model was free"
    FULL = "full", "its budget was spent"
    DEADLINE = "deadline", "kept short for a request's deadline"
    DRAIN = "drain", "the teacher is stopping"


class Rejection(_Label):
    """Why a request or a call is refused."""

    QUEUE_FULL = "queue_full", "what waits for the model is at its limit"
    DRAINING = "draining", "the teacher is stopping"
    LOADING = "loading", "the teacher is not ready yet"
    INVALID = "invalid", "no request, or beyond the limits of one"
    UNAUTHENTICATED = "unauthenticated", "without a token that the teacher knows"
    CALLS = "calls", "max_calls are open"
    QUOTA = "quota", "the caller's positions per second are spent"


class _Declared(NamedTuple):
    kind: type[Counter | Gauge | Histogram]
    name: str
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    """Of a histogram's buckets."""

    def on(self, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
        """The metric, registered."""
        if self.kind is Histogram:
            return Histogram(self.name, self.text, self.labels, buckets=self.bounds, registry=registry)
        return self.kind(self.name, self.text, self.labels, registry=registry)


def _powers_of_two(last: int) -> tuple[int, ...]:
    return tuple(2**k for k in range(last + 1))


_BY_CALLER = "by the name of the caller's token (other: without a name, or beyond the first 100 names)."

DECLARED = {
    "requests": _Declared(
        Counter, "teacher_requests_total", "Requests ended, by method and status.", ("method", "code")
    ),
    "request_seconds": _Declared(
        Histogram, "teacher_request_seconds", "From a request's arrival to its answer.", ("method",), SECONDS
    ),
    "in_flight": _Declared(Gauge, "teacher_in_flight_requests", "Requests under way."),
    "open_streams": _Declared(Gauge, "teacher_open_streams", "Streams that callers hold open."),
    "credit_outstanding": _Declared(Gauge, "teacher_credit_positions", "Positions granted to streams and not spent."),
    "rejected": _Declared(
        Counter,
        "teacher_rejected_total",
        f"Requests and calls refused, by reason: {Rejection.explained()}.",
        ("reason",),
    ),
    "expired": _Declared(
        Counter, "teacher_expired_total", "Requests dropped before compute: their deadline had passed."
    ),
    "cancelled": _Declared(
        Counter, "teacher_cancelled_total", "Accepted requests whose caller left before the answer."
    ),
    "queue_requests": _Declared(Gauge, "teacher_queue_requests", "Requests of which rows are queued or computed."),
    "queue_positions": _Declared(Gauge, "teacher_queue_positions", "Positions of these that were not remembered."),
    "queue_wait_seconds": _Declared(
        Histogram,
        "teacher_queue_wait_seconds",
        "From a request's admission to the start of its first batch; 0 if all of it was remembered.",
        bounds=SECONDS,
    ),
    "batches": _Declared(
        Counter,
        "teacher_batches_total",
        f"Batches, by why they hold no more: {CutReason.explained()}.",
        ("reason",),
    ),
    "batch_requests": _Declared(
        Histogram, "teacher_batch_requests", "Requests that a batch holds rows of.", bounds=_powers_of_two(10)
    ),
    "batch_positions": _Declared(
        Histogram, "teacher_batch_positions", "Scored positions in a batch.", bounds=_powers_of_two(18)
    ),
    "batch_padded_tokens": _Declared(
        Histogram, "teacher_batch_padded_tokens", "Padded tokens in a batch.", bounds=_powers_of_two(20)
    ),
    "compute_seconds": _Declared(Histogram, "teacher_compute_seconds", "The model's time for a batch.", bounds=SECONDS),
    "caller_requests": _Declared(
        Counter, "teacher_caller_requests_total", f"Valid requests for scores, {_BY_CALLER}", ("caller",)
    ),
    "caller_positions": _Declared(
        Counter, "teacher_caller_positions_total", f"Scored positions asked for, {_BY_CALLER}", ("caller",)
    ),
    "caller_limited": _Declared(
        Counter, "teacher_caller_limited_total", f"Requests slowed or refused for a quota, {_BY_CALLER}", ("caller",)
    ),
    "scored_positions": _Declared(Counter, "teacher_scored_positions_total", "Positions that the model has scored."),
    # the daemon itself
    "state": _Declared(Gauge, "teacher_state", "1 for the state of the daemon, 0 for all others.", ("state",)),
    "load_seconds": _Declared(
        Gauge, "teacher_load_seconds", "From the start of the process until requests were accepted; 0 before."
    ),
    "certificate_end": _Declared(
        Gauge,
        "teacher_certificate_expiry_timestamp_seconds",
        "When the first certificate of each file in use ends, by the setting that names the file.",
        ("file",),
    ),
}
"""By the attribute of `Metrics`."""


METHODS = ("GetTeacher", "Score", "StreamScore")
"""Of requests; StreamScore is one request on a stream."""
CODES = ("OK", *sorted({kind.status for kind in TeacherError.__subclasses__()}))
"""That a request may end with."""


class Metrics:
    """What the daemon counts; methods of requests are `METHODS`."""

    requests: Counter
    request_seconds: Histogram
    in_flight: Gauge
    open_streams: Gauge
    credit_outstanding: Gauge
    rejected: Counter
    expired: Counter
    cancelled: Counter
    queue_requests: Gauge
    queue_positions: Gauge
    queue_wait_seconds: Histogram
    batches: Counter
    batch_requests: Histogram
    batch_positions: Histogram
    batch_padded_tokens: Histogram
    compute_seconds: Histogram
    caller_requests: Counter
    caller_positions: Counter
    caller_limited: Counter
    scored_positions: Counter
    state: Gauge
    load_seconds: Gauge
    certificate_end: Gauge

    def __init__(self, registry: CollectorRegistry) -> None:
        """Registers everything on `registry`, and the collectors of process, interpreter and garbage collector."""
        self.registry = registry
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)
        for attribute, declared in DECLARED.items():
            setattr(self, attribute, declared.on(registry))
        self.model = Info("teacher_model", "What is served.", registry=registry)
        self.build = Info("teacher_build", "The software that serves it.", registry=registry)
        self.listeners: list[Callable[[Request], None]] = []
        """Are told of every request that ends, the refused too."""
        for method in METHODS:  # at 0: a rate sees the first of a kind only if there was a value before it
            self.request_seconds.labels(method)
            for code in CODES:
                self.requests.labels(method, code)
        for cut in CutReason:
            self.batches.labels(cut)
        for rejection in Rejection:
            self.rejected.labels(rejection)

    @contextlib.contextmanager
    def request(self, method: str, caller: str = "") -> Iterator[Request]:
        """Counts and times one request; its code is the status of what the block raises."""
        request = Request(method, caller)
        before = CURRENT.set(request)
        started = time.perf_counter()
        self.in_flight.inc()
        try:
            yield request
        except asyncio.CancelledError:
            request.code = "CANCELLED"
            raise
        except TeacherError as error:
            request.code = error.status
            if isinstance(error, InvalidRequest):
                self.reject(Rejection.INVALID)
            raise
        except BaseException:
            request.code = "INTERNAL"
            raise
        finally:
            CURRENT.reset(before)
            request.seconds = time.perf_counter() - started
            self.in_flight.dec()
            self.requests.labels(method, request.code).inc()
            self.request_seconds.labels(method).observe(request.seconds)
            self.tell(request)

    def tell(self, request: Request) -> None:
        """A request has ended, or was refused before it was read."""
        for listener in self.listeners:
            listener(request)

    def reject(self, reason: Rejection) -> None:
        """A request or a call was refused."""
        self.rejected.labels(reason).inc()

    def set_queue(self, requests: int, positions: int) -> None:
        """What waits for the model now."""
        self.queue_requests.set(requests)
        self.queue_positions.set(positions)

    def batch_cut(self, reason: CutReason, requests: int, positions: int, padded_tokens: int) -> None:
        """A batch was made."""
        self.batches.labels(reason).inc()
        self.batch_requests.observe(requests)
        self.batch_positions.observe(positions)
        self.batch_padded_tokens.observe(padded_tokens)

    def follow(self, states: Iterable[str], current: Callable[[], str]) -> None:
        """Exposes which of some states holds, read when somebody looks."""
        for state in states:
            self.state.labels(state).set_function(functools.partial(_holds, state, current))

    def watch(self, answers: AnswerTable) -> None:
        """Exposes what an answer table counts, read when somebody looks."""
        self.registry.register(_TableCollector(answers))


def _holds(state: str, current: Callable[[], str]) -> float:
    return float(current() == state)


class _TableCollector(Collector):
    def __init__(self, answers: AnswerTable) -> None:
        self._answers = answers

    def collect(self) -> Iterable[Metric]:
        positions = CounterMetricFamily(
            "teacher_positions",
            "Scored positions asked for, by outcome: hit (remembered), wait (in flight already), miss (computed anew).",
            labels=["outcome"],
        )
        for outcome, count in zip(("hit", "wait", "miss"), self._answers.outcomes, strict=True):
            positions.add_metric([outcome], count)
        yield positions
        evictions = "Remembered rows that made way for others."
        yield CounterMetricFamily("teacher_cache_evictions", evictions, value=self._answers.evictions)
        yield GaugeMetricFamily("teacher_cache_rows", "Rows remembered or in flight.", value=self._answers.rows)
        yield GaugeMetricFamily("teacher_cache_bytes", "Memory of these rows.", value=self._answers.bytes)
        yield GaugeMetricFamily("teacher_cache_limit_bytes", "Memory that they may have.", value=self._answers.limit)
