"""Logging: one line an event on stderr; results go to stdout, never here."""

from __future__ import annotations

import logging
import sys
from typing import Literal

import tqdm

Level = Literal["debug", "info", "warning", "error"]


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
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for chatty in ("torch", "matplotlib", "urllib3", "asyncio"):
        logging.getLogger(chatty).setLevel("WARNING")
