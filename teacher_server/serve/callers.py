"""Who calls: by its token where tokens have names, otherwise by the name that it gives itself, or by its connection."""

from __future__ import annotations

import contextvars
import re

import grpc

from shared.errors import InvalidRequest

CALLER_KEY = "teacher-client"
CALLER_NAME = re.compile(r"[ -~]{1,64}")

_known: contextvars.ContextVar[str] = contextvars.ContextVar("_known", default="")
"""Of the task that a call is, and of those that it starts."""


def enter(name: str) -> None:
    """The call of this task has shown the token of this name; empty: one without a name."""
    _known.set(name)


def known() -> str:
    """The name of the token that this call has shown; empty if it has none."""
    return _known.get()


def caller_of(context: grpc.aio.ServicerContext) -> str:
    """Whose share of the teacher a call takes. A token's name cannot be given by oneself: all tokens have one, or none.

    Raises:
        InvalidRequest: the name that the caller gives itself is not 1 to 64 printable ASCII characters.
    """
    if name := known():
        return name
    for key, value in context.invocation_metadata() or ():
        if key == CALLER_KEY:
            if not isinstance(value, str) or CALLER_NAME.fullmatch(value) is None:
                raise InvalidRequest(f"metadata {CALLER_KEY}: {value!r} is not 1 to 64 printable ASCII characters")
            return value
    return str(context.peer())
