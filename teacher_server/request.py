"""What is known of the request that the code at hand answers; whoever measures, logs or traces it reads it here."""

from __future__ import annotations

import dataclasses
from contextvars import ContextVar


@dataclasses.dataclass(slots=True, eq=False)
class Request:
    """What is known of one request; whoever learns more of it fills it in.

    Attributes:
        caller: the name that it gives itself, or its connection.
        positions: asked for; 0 where it could not be read.
        queue_us, compute_us: as the answer tells them, microseconds.
        seconds: from its arrival to its end.
    """

    method: str
    caller: str = ""
    code: str = "OK"
    positions: int = 0
    queue_us: int = 0
    compute_us: int = 0
    seconds: float = 0.0


CURRENT: ContextVar[Request] = ContextVar("request")
"""The request that the code at hand answers; within `Metrics.request`."""
