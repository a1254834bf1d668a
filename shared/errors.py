"""Errors, and the one table between them and gRPC status codes.

    ReportableError             shown to a person as one line, without a traceback
    |-- ConfigError             unknown key, value out of range, contradictory settings
    |-- DataError               malformed or missing input file: names file, row, column
    |-- FileFormatError         a checkpoint, teacher file or store that cannot be read
    |-- CompatibilityError      two artefacts that do not belong together
    |-- TrainingError           a run that cannot go on (non-finite losses, dead teacher)
    `-- TeacherError            what a teacher answers instead of scores; has a status
        |-- InvalidRequest      INVALID_ARGUMENT    never retried
        |-- Unauthenticated     UNAUTHENTICATED     no token, or a wrong one; never retried
        |-- Overloaded          RESOURCE_EXHAUSTED  queue full; retried with backoff
        |-- Unavailable         UNAVAILABLE         draining, loading, unreachable; retried
        |-- DeadlineExceeded    DEADLINE_EXCEEDED   dropped before compute; retried
        |-- Cancelled           CANCELLED           the caller went away, or the call was lost; retried
        |-- Corrupted           DATA_LOSS           a message was damaged on its way; retried
        `-- InternalError       INTERNAL            the teacher's own fault; retried

The server raises the subclasses of `TeacherError`, the service turns them into
status codes (`status`), and the client turns status codes back (`from_status`):
a remote `InvalidRequest` is an `InvalidRequest`.
"""

from __future__ import annotations

from typing import ClassVar


class ReportableError(Exception):
    """What a user can cause and mend: the message says what, where and how."""


class ConfigError(ReportableError):
    """A setting is unknown, out of range or contradicts another."""


class DataError(ReportableError):
    """An input file is missing or malformed."""


class FileFormatError(ReportableError):
    """A file that this system reads is not what it should be."""


class CompatibilityError(ReportableError):
    """Two artefacts (store, teacher, weights) do not belong together."""


class TrainingError(ReportableError):
    """A training run cannot go on."""


class TeacherError(ReportableError):
    """Base of what a teacher answers instead of scores."""

    status: ClassVar[str]
    """Name of the `grpc.StatusCode`."""
    code: ClassVar[int]
    """Number of the `google.rpc.Code`."""
    retryable: ClassVar[bool]
    """Whether the same request may succeed later."""


class InvalidRequest(TeacherError):
    """A field of the request breaks a rule; the message names field, index and limit."""

    status, code, retryable = "INVALID_ARGUMENT", 3, False


class Unauthenticated(TeacherError):
    """The caller has not shown who it is."""

    status, code, retryable = "UNAUTHENTICATED", 16, False


class Overloaded(TeacherError):
    """The queue is full."""

    status, code, retryable = "RESOURCE_EXHAUSTED", 8, True


class Unavailable(TeacherError):
    """The teacher is draining, not loaded or not reachable."""

    status, code, retryable = "UNAVAILABLE", 14, True


class DeadlineExceeded(TeacherError):
    """The caller's deadline passed before the request was computed."""

    status, code, retryable = "DEADLINE_EXCEEDED", 4, True


class Cancelled(TeacherError):
    """The caller has gone, or the transport gave the call up."""

    status, code, retryable = "CANCELLED", 1, True


class Corrupted(TeacherError):
    """A message is not the one that was sent."""

    status, code, retryable = "DATA_LOSS", 15, True


class InternalError(TeacherError):
    """The teacher failed, or answered what cannot be an answer."""

    status, code, retryable = "INTERNAL", 13, True


_KINDS: tuple[type[TeacherError], ...] = (
    InvalidRequest,
    Unauthenticated,
    Overloaded,
    Unavailable,
    DeadlineExceeded,
    Cancelled,
    Corrupted,
    InternalError,
)
_BY_STATUS = {kind.status: kind for kind in _KINDS}
_BY_CODE = {kind.code: kind for kind in _KINDS}


class UnexpectedStatus(TeacherError):
    """A status that this service never sends (a proxy, another service): not retried."""

    status, code, retryable = "UNKNOWN", 2, False


def from_status(status: str, message: str) -> TeacherError:
    """The error that a `grpc.StatusCode` name stands for."""
    kind = _BY_STATUS.get(status)
    return kind(message) if kind else UnexpectedStatus(f"{status}: {message}")


def from_code(code: int, message: str) -> TeacherError:
    """The error that a `google.rpc.Code` number stands for."""
    kind = _BY_CODE.get(code)
    return kind(message) if kind else UnexpectedStatus(f"code {code}: {message}")
