"""Logging: one line an event on stderr; results go to stdout, never here.

A line is text for people or JSON for machines; its time is UTC, with date and milliseconds. What else writes on stderr
(libraries of C, prints, warnings) becomes lines of the same format where machines read them: `captured`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Literal, TextIO

import tqdm

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None  # type: ignore[assignment]

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["text", "json"]

CHATTY = ("torch", "matplotlib", "urllib3", "asyncio")
"""Only their warnings are worth a line."""
NATIVE = "stderr"
"""The name of what is written past `logging`."""
GRPC_CORE = "grpc.core"
"""The same, by gRPC's core."""
GRPC_LINE = re.compile(r"([IWEF])\d{4} [\d:.]+ +\d+ ([\w./-]+:\d+)\] (.*)")
"""A line of gRPC's core: severity and date, time, thread, place, message."""
SEVERITIES = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "F": logging.CRITICAL}
PIPE_BYTES = 2**20
"""Of what waits to be made lines of; a library that writes more at once loses it, rather than waiting."""
LAST_SECONDS = 1.0
"""How long the end of a job waits for its last lines; a child that lives on may hold them open."""


def fields(**values: Any) -> dict[str, Any]:
    """Values of an event, for `extra=`: keys of their own in JSON, key=value behind the message in text."""
    return {"fields": values}


TEXT_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z [A-Z] (?:rank \d+ )?[\w.]+: (.*)")
"""A line of `TextFormatter`."""


def message_of(line: str) -> str:
    """What a line of text says, without when and where; a line that is none of ours as it is."""
    found = TEXT_LINE.fullmatch(line)
    return found[1] if found else line


def _fields_of(record: logging.LogRecord) -> Mapping[str, Any]:
    return getattr(record, "fields", {})


def _utc(seconds: float) -> str:
    """2026-01-31T23:59:59.123Z."""
    milliseconds = int(1000 * seconds)  # never a second that has not begun
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03d}Z"


class TextFormatter(logging.Formatter):
    """TIME LEVEL NAME: MESSAGE key=value..., and a traceback below it."""

    def __init__(self, rank: int | None = None) -> None:
        """Of one process, or of one of several."""
        self._rank = "" if rank is None else f"rank {rank} "
        super().__init__(f"%(asctime)s %(levelname).1s {self._rank}%(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802 - of its parent
        """See `logging.Formatter`."""
        return _utc(record.created)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """See `logging.Formatter`."""
        values = (f" {key}={_plain(value)}" for key, value in _fields_of(record).items())
        return super().formatMessage(record) + "".join(values)


class JsonFormatter(logging.Formatter):
    """One object: time, level, logger, message; rank, exception and an event's own values where there are such."""

    def __init__(self, rank: int | None = None) -> None:
        """Of one process, or of one of several."""
        super().__init__()
        self._rank = {} if rank is None else {"rank": rank}

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        line = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._rank,
            **_fields_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=str)


def _plain(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if re.fullmatch(r"[\w.:/@%+,\[\]-]+", text) else json.dumps(text)


FORMATTERS: dict[Format, type[TextFormatter] | type[JsonFormatter]] = {"text": TextFormatter, "json": JsonFormatter}


class _Handler(logging.Handler):
    """Writes to stderr as it was before it was captured: above a progress bar instead of through it."""

    def __init__(self, format: Format) -> None:
        super().__init__()
        self.output_format = format
        self.stream: TextIO | None = None
        """Where to, if not to `sys.stderr` as it is now."""
        self.setFormatter(FORMATTERS[format]())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=self.stream or sys.stderr)
        except Exception:
            self.handleError(record)  # a reader of stderr that goes away must not end the job


def setup(level: Level = "info", format: Format = "text") -> None:
    """Sends the root logger to stderr; called by an entry point, and again once it knows the format."""
    root = logging.getLogger()
    root.handlers[:] = [_Handler(format)]
    root.setLevel(level.upper())
    for chatty in CHATTY:
        logging.getLogger(chatty).setLevel("WARNING")


def is_json() -> bool:
    """Whether lines are JSON."""
    return any(handler.output_format == "json" for handler in _handlers())


def _handlers() -> list[_Handler]:
    return [handler for handler in logging.getLogger().handlers if isinstance(handler, _Handler)]


def say(name: str, failure: str) -> None:
    """Why a job has ended: one line on stderr, of the log's format if that is for machines.

    Args:
        name: of the job.
    """
    if is_json():
        logging.getLogger(name.replace(" ", ".")).error("%s: %s", name, failure)
    else:
        sys.stderr.write(f"{name}: {failure}\n")


def as_rank(rank: int) -> None:
    """Marks this process as one of several that do the same job, of which the first says what all would say.

    Args:
        rank: 1 or more; only its warnings are shown, with the rank before the name.
    """
    root = logging.getLogger()
    for handler in _handlers():
        handler.setFormatter(FORMATTERS[handler.output_format](rank))
    root.setLevel(max(root.level, logging.WARNING))


@contextlib.contextmanager
def captured() -> Iterator[None]:
    """Makes lines of this format of all that is written on stderr past `logging`, where machines read them.

    That is where lines are JSON, or where gRPC's core was asked to write (GRPC_VERBOSITY). Elsewhere nothing changes.
    What a library writes in the moment in which it kills the process may be lost.
    """
    asked = os.environ.get("GRPC_VERBOSITY", "NONE").upper() not in ("", "NONE")
    if not (is_json() or asked):
        yield
        return
    sys.stderr.flush()
    original = os.dup(2)
    with os.fdopen(original, "w", encoding="utf-8", errors="backslashreplace", buffering=1) as stream:
        reading, writing = os.pipe()
        _prepare_pipe(writing)
        os.dup2(writing, 2)
        os.close(writing)
        for handler in _handlers():
            handler.stream = stream
        hook, threading.excepthook = threading.excepthook, _log_thread_failure
        thread = threading.Thread(target=_relay, args=(reading, stream), name="stderr", daemon=True)
        thread.start()
        try:
            yield
        finally:
            threading.excepthook = hook
            sys.stderr.flush()
            os.dup2(original, 2)
            thread.join(LAST_SECONDS)
            for handler in _handlers():
                handler.stream = None


def _prepare_pipe(writing: int) -> None:
    """Who writes never waits: it may hold what the reader needs."""
    os.set_blocking(writing, False)
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux
        with contextlib.suppress(OSError):  # above what the system lets a user have
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _relay(reading: int, stream: TextIO) -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            text = line.rstrip("\n")
            with contextlib.suppress(OSError, ValueError):  # the job has ended, or nobody reads
                if not text.strip():
                    continue
                if text.startswith('{"time": "') or not (is_json() or GRPC_LINE.match(text)):
                    stream.write(line)  # a child's own line; or text among text
                else:
                    _log_native(text)


def _log_native(text: str) -> None:
    if core := GRPC_LINE.match(text):
        logging.getLogger(GRPC_CORE).log(SEVERITIES[core[1]], "%s: %s", core[2], core[3])
    else:
        logger = logging.getLogger(NATIVE)  # whatever the level: nobody has said how bad it is
        logger.handle(logger.makeRecord(NATIVE, logging.INFO, "", 0, text, (), None))


def _log_thread_failure(failed: threading.ExceptHookArgs) -> None:
    if failed.exc_value is None or isinstance(failed.exc_value, SystemExit):
        return
    information: tuple[type[BaseException], BaseException, TracebackType | None]
    information = (failed.exc_type, failed.exc_value, failed.exc_traceback)
    name = "" if failed.thread is None else failed.thread.name
    logging.getLogger(NATIVE).error("the thread %s failed", name, exc_info=information)
