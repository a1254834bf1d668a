"""Tracing: what a piece of work was part of and how long it took, as spans that go to an OpenTelemetry collector.

Without an endpoint there is no tracer, nothing is measured, and OpenTelemetry is not imported.

    trainer   train.step -+- prepare -- teacher.request (one an attempt) ----.      a span that is current
                          `- update                                          |      is the parent of what is begun
    teacher                          teacher.v1.TeacherService/StreamScore <-'      by its traceparent (W3C)
                                       +- queue  +- assemble  +- compute  +- encode
"""

from __future__ import annotations

import contextlib
import contextvars
import re
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pydantic

import shared
from shared import extras
from shared.config import Section

EXPORT_SECONDS = 5.0
"""How long the collector may take to accept some spans; at the end of the process, the rest of them."""
TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")

Value = str | int | float
"""Of an attribute."""


class TracingConfig(Section):
    """Where spans go to; needs the extra [tracing]."""

    endpoint: str = ""
    """URL of an OpenTelemetry collector that takes OTLP over gRPC, such as http://127.0.0.1:4317; https encrypts.
    Empty: no tracing. The environment's OTEL_EXPORTER_OTLP_HEADERS and OTEL_RESOURCE_ATTRIBUTES are used as well."""
    share: float = pydantic.Field(1.0, ge=0, le=1)
    """Share of the traces that begin here and are recorded; those of callers are if the caller says so."""

    @pydantic.field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, text: str) -> str:
        parts = urllib.parse.urlsplit(text)
        if text and (parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/")):
            raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
        return text


class Span:
    """A piece of work that has begun. Its times are nanoseconds since 1970; none: now."""

    def __init__(self, tracer: Any, span: Any) -> None:
        """Made by `Tracer.begin` and by spans."""
        self._tracer, self._span = tracer, span

    @property
    def traceparent(self) -> str:
        """How the W3C's trace context names it to other processes."""
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    @property
    def is_recorded(self) -> bool:
        """Whether anybody will see it."""
        return bool(self._span.is_recording())

    def begin(self, name: str, start: int | None = None, **attributes: Value) -> Span:
        """A part of it."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        kind = SpanKind.CLIENT if name == REQUEST else SpanKind.INTERNAL
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(name, parent, kind=kind, attributes=attributes, start_time=start)
        return Span(self._tracer, span)

    def note(self, **attributes: Value) -> None:
        """Adds what is known of it."""
        self._span.set_attributes(attributes)

    def end(self, error: BaseException | None = None, end: int | None = None) -> None:
        """It is over, well or by an error."""
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            self._span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {error}"))
        self._span.end(end)

    @contextlib.contextmanager
    def lasting(self) -> Iterator[Span]:
        """The block is this span: it is current there, and over afterwards."""
        token = _current.set(self)
        try:
            yield self
        except BaseException as error:
            self.end(error)
            raise
        else:
            self.end()
        finally:
            _current.reset(token)


REQUEST = "teacher.request"
"""The span of an attempt at a request, as its caller sees it."""

_current: contextvars.ContextVar[Span | None] = contextvars.ContextVar("_current", default=None)


def traceparent() -> str:
    """Of the current span; empty if there is none."""
    span = _current.get()
    return "" if span is None else span.traceparent


_NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def part(name: str) -> contextlib.AbstractContextManager[Any]:
    """The block is a part of the current span, as which it is given; if there is none, it is only a block, and None is
    given. Then nothing is allocated."""
    span = _current.get()
    return _NOTHING if span is None else span.begin(name).lasting()


@contextlib.contextmanager
def within(span: Span | None) -> Iterator[None]:
    """In the block this span is current; it goes on afterwards."""
    token = _current.set(span)
    try:
        yield
    finally:
        _current.reset(token)


class Tracer:
    """Begins traces, or goes on with those of others."""

    def __init__(self, tracer: Any) -> None:
        """Made by `opened`."""
        self._tracer = tracer

    def begin(self, name: str, parent: str | None = None, **attributes: Value) -> Span:
        """A span.

        Args:
            name: of the work.
            parent: the `traceparent` of the caller whose request this is, or what it sent instead; None: it is nobody's
                request. Without a valid one a new trace begins.
        """
        from opentelemetry.trace import SpanKind

        context = None if parent is None else _context_of(parent)
        kind = SpanKind.INTERNAL if parent is None else SpanKind.SERVER
        return Span(self._tracer, self._tracer.start_span(name, context, kind=kind, attributes=attributes))


@contextlib.contextmanager
def opened(config: TracingConfig, service: str) -> Iterator[Tracer | None]:
    """The tracer of a process, whose last spans are sent at the end of the block; None without an endpoint.

    Args:
        config: where to.
        service: the program's name.

    Raises:
        ConfigError: the extra is not installed.
    """
    if not config.endpoint:
        yield None
        return
    with extras.needed("tracing"):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    resource = Resource.create({"service.name": service, "service.version": shared.__version__})
    provider = TracerProvider(ParentBased(TraceIdRatioBased(config.share)), resource, shutdown_on_exit=False)
    is_plain = config.endpoint.startswith("http:")
    exporter = OTLPSpanExporter(endpoint=config.endpoint, insecure=is_plain, timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracer(provider.get_tracer(shared.DISTRIBUTION, shared.__version__))
    finally:
        provider.shutdown()


def _context_of(text: str) -> Any:
    """OpenTelemetry's context of a `traceparent`; None if it is none."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

    found = TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace, span, flags = (int(part, 16) for part in found.groups())
    context = SpanContext(trace, span, is_remote=True, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(context)) if context.is_valid else None
