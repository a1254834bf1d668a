"""The spans of a request that is traced: what its time at the teacher was spent on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import grpc

from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.tracing import Span, Tracer, Value
from teacher_server.batching.timeline import BatchTimes

SERVICE = pb.DESCRIPTOR.services_by_name["TeacherService"].full_name
KEY = "traceparent"
"""Of the metadata that names the caller's span."""


class RequestTrace:
    """One request's.

    Attributes:
        timeline: where the batcher puts the times of the batches that the request waits for.
    """

    def __init__(self, span: Span, clock: Callable[[], float]) -> None:
        """The request has come; `clock` is the batcher's, seconds."""
        self.timeline: list[BatchTimes] = []
        self._span, self._clock = span, clock
        self._began = clock()
        self._offset = time.time_ns() - round(1e9 * self._began)

    def answered(self, positions: int) -> None:
        """The batcher has answered: from here on the answer is encoded."""
        now = self._clock()
        first = self.timeline[0].assembling if self.timeline else self._began
        self._add("queue", self._began, max(self._began, first), positions=positions, batches=len(self.timeline))
        for times in self.timeline:
            self._add("assemble", times.assembling, times.assembled)
            self._add("compute", times.computing, times.computed)
        self._began = now

    def encoded(self) -> None:
        """The answer is ready to be sent."""
        self._add("encode", self._began, self._clock())

    def _add(self, name: str, began: float, ended: float, **attributes: Value) -> None:
        begun = self._span.begin(name, round(1e9 * began) + self._offset, **attributes)
        begun.end(end=round(1e9 * ended) + self._offset)


@contextlib.contextmanager
def served(
    tracer: Tracer, method: str, parent: str, context: grpc.aio.ServicerContext, clock: Callable[[], float], caller: str
) -> Iterator[RequestTrace | None]:
    """Around one request; None if nobody will see its trace.

    Args:
        tracer: of the daemon.
        method: of the service.
        parent: what the request itself says of the caller's span; empty: what the metadata of its call says.
        context: of the call.
        clock: the batcher's.
        caller: who asks.
    """
    span = tracer.begin(f"{SERVICE}/{method}", parent or _of_call(context), caller=caller)
    with span.lasting():
        yield RequestTrace(span, clock) if span.is_recorded else None


def _of_call(context: grpc.aio.ServicerContext) -> str:
    found = [value for key, value in context.invocation_metadata() or () if key == KEY]
    return found[0] if found and isinstance(found[0], str) else ""
