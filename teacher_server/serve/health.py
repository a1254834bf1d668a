"""gRPC's health service (grpc.health.v1): Check, List and Watch, which say what the daemon's state is."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shared.rpc.teacher.v1 import teacher_pb2 as pb
from teacher_server.serve.lifecycle import Lifecycle, State

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
NAMES = ("", pb.DESCRIPTOR.services_by_name["TeacherService"].full_name)
"""What can be asked for: the daemon, and its one service."""


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the stubs lack it
    """The methods; they hold nothing for names that callers make up."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    async def Check(  # noqa: N802 - named by the contract
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Whether a service serves; NOT_FOUND for a name that is none."""
        if request.service not in NAMES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no such service; there are {', '.join(map(repr, NAMES))}")
        return self._status(request.service)

    async def List(  # noqa: N802
        self, request: health_pb2.HealthListRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthListResponse:
        """The same of all services."""
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in NAMES})

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The status now, and whenever it becomes another one, until the daemon stops."""
        told = None
        while (state := self._lifecycle.state) is not State.STOPPED:
            status = self._status(request.service)
            if status != told:
                yield status
                told = status
            await self._lifecycle.end_of(state)

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        statuses = health_pb2.HealthCheckResponse
        if service not in NAMES:
            return health_pb2.HealthCheckResponse(status=statuses.SERVICE_UNKNOWN)
        is_serving = self._lifecycle.is_serving
        return health_pb2.HealthCheckResponse(status=statuses.SERVING if is_serving else statuses.NOT_SERVING)
