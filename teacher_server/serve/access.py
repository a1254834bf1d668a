"""The access log: a line for each request, when it has ended."""

from __future__ import annotations

import logging

from shared import log as logs
from teacher_server.request import Request

log = logging.getLogger(__name__)


def write(request: Request) -> None:
    """Adds the line of a request; times in microseconds."""
    log.info(
        "request",
        extra=logs.fields(
            caller=request.caller,
            method=request.method,
            code=request.code,
            positions=request.positions,
            queue_us=request.queue_us,
            compute_us=request.compute_us,
            total_us=round(1e6 * request.seconds),
        ),
    )
