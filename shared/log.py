"""Logging: one line an event on stderr; results go to stdout, never here."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import tqdm

Level = Literal["debug", "info", "warning", "error"]

FORMAT = "%(asctime)s %(levelname).1s %(name)s: %(message)s"


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.tqdm.write(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)  # a reader of stderr that goes away must not end the job


def setup(level: Level = "info") -> None:
    """Sends the root logger to stderr; called once, by an entry point."""
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter(FORMAT, "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("torch", "matplotlib", "urllib3", "asyncio"):
        logging.getLogger(chatty).setLevel("WARNING")


def as_rank(rank: int) -> None:
    """Marks this process as one of several that do the same job, of which the first says what all would say.

    Args:
        rank: 1 or more; only its warnings are shown, with the rank before the name.
    """
    root = logging.getLogger()
    for handler in root.handlers:
        handler.setFormatter(logging.Formatter(FORMAT.replace("%(name)s", f"rank {rank} %(name)s"), "%H:%M:%S"))
    root.setLevel(max(root.level, logging.WARNING))
