"""Around every call of the teacher service: bytes -> message, errors -> status, counts and times.

The one place where an exception becomes a status. A request on a stream is refused by a message
instead; `as_teacher_error` decides what it says, too.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError

from shared.errors import InternalError, InvalidRequest, Overloaded, TeacherError
from teacher_server.metrics import Metrics, Rejection
from teacher_server.serve.limits import SERVICE, abort, method_of, refusal, service_of

log = logging.getLogger(__name__)

Parse = Callable[[bytes], Any]
Behaviour = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class GoneCallers(logging.Filter):
    """Drops what gRPC logs, as an error with a traceback, when a caller has gone before its answer could be sent."""

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter`."""
        return not (record.exc_info and isinstance(record.exc_info[1], grpc.aio.InternalError))


def as_teacher_error(error: BaseException) -> TeacherError:
    """What the caller is told of an exception; one that nobody expected is logged with its traceback.

    It has none any more: who keeps the refusal in a variable would keep a cycle, with the request in it.
    """
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TeacherError):
        return error.with_traceback(None)
    log.error("a request failed unexpectedly", exc_info=error)
    return InternalError(f"the teacher failed ({type(error).__name__}); its log says why")


class TeacherInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of the teacher service and counts its open calls; leaves health and reflection alone."""

    def __init__(self, metrics: Metrics, max_calls: int) -> None:
        self._metrics, self._max_calls = metrics, max_calls
        self._calls: set[asyncio.Task[Any]] = set()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See `grpc.aio.ServerInterceptor`."""
        handler: Any = await continuation(handler_call_details)  # None for a method that nobody serves
        if handler is None or service_of(handler_call_details) != SERVICE:
            return cast(grpc.RpcMethodHandler, handler)
        method = method_of(handler_call_details)
        if not self._admit():
            self._metrics.reject(Rejection.CALLS)
            full = Overloaded(f"{self._max_calls} calls are open, and no more may be (max_calls)")
            return refusal(full, self._metrics, method)
        parse = _lenient(handler.request_deserializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                _stream(handler.stream_stream), parse, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            self._unary(method, handler.unary_unary), parse, handler.response_serializer
        )

    def _admit(self) -> bool:
        """Whether a call may go on; it counts until its task ends, for which it need not come as far as its method."""
        task = asyncio.current_task()
        assert task is not None
        if len(self._calls) >= self._max_calls:
            return False
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        return True

    def _unary(self, method: str, answer: Behaviour) -> Behaviour:
        async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                with self._metrics.request(method, str(context.peer())):
                    return await answer(_checked(request), context)
            except Exception as error:
                refused = as_teacher_error(error)
            del request  # gRPC keeps the exception that ends a call, and with it this frame, in a cycle
            return await abort(context, refused)

        return call


def _stream(answer: Behaviour) -> Behaviour:
    async def call(_: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> None:
        try:
            await answer(_Messages(context), context)
            return
        except Exception as error:
            refused = as_teacher_error(error)
        await abort(context, refused)

    return call


class _Messages:
    """The messages of a stream. gRPC's own iterator is a generator, which complains when it is abandoned."""

    def __init__(self, context: grpc.aio.ServicerContext) -> None:
        self._context = context

    def __aiter__(self) -> _Messages:
        return self

    async def __anext__(self) -> Any:
        message = await self._context.read()
        if message is grpc.aio.EOF:  # type: ignore[attr-defined]  # the stubs lack it
            raise StopAsyncIteration
        return _checked(message)


def _lenient(parse: Parse) -> Parse:
    """Returns the refusal instead of raising it: gRPC makes an unknown failure of what a parser raises."""

    def call(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return InvalidRequest(f"{len(data)} bytes that are not a message of {SERVICE}")

    return call


def _checked(request: Any) -> Any:
    if isinstance(request, TeacherError):
        raise request
    return request
