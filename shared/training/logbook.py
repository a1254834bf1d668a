"""Where a job's values go: `metrics.jsonl`, and the sinks that its settings ask for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from shared import files
from shared.errors import FileFormatError
from shared.sinks import Sink, Sinks, WandbRun


class Logbook:
    """Writes each record to every sink.

    A record is a flat dictionary of numbers with `step`; names are `group/metric`.
    """

    def __init__(
        self,
        path: Path,
        step: int,
        tensorboard: bool,
        wandb: WandbRun,
        prometheus: Callable[[], Sink] | None = None,
    ) -> None:
        """Opens the sinks of a job that stands at `step`; later records of an earlier attempt are dropped.

        Args:
            path: the file of records; what the sinks write stands beside it.
            step: the last one that is done.
            tensorboard: whether to write event files.
            wandb: what Weights & Biases is told, if it is asked for.
            prometheus: opens that sink, if it is wanted.
        """
        _keep_until(path, step)
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._sinks = Sinks(path.parent, tensorboard, wandb, after=step, prometheus=prometheus)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Adds a record."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._sinks.write(step, metrics)

    def close(self) -> None:
        """Flushes and closes every sink."""
        self._file.close()
        self._sinks.close()


def read(path: Path) -> list[dict[str, Any]]:
    """The whole records of a file; a last line that a crash has cut, or that is being written, is none.

    Raises:
        FileFormatError: the file is there and cannot be read, or a line is no record.
        FileNotFoundError: there is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    return [_record(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _record(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        raise FileFormatError(f"{where} is no record of a step; remove it, or the file to go on without records")
    return record


def _keep_until(path: Path, step: int) -> None:
    if path.exists():
        kept = [record for record in read(path) if record["step"] <= step]
        files.write_text(path, "".join(f"{json.dumps(record)}\n" for record in kept))
