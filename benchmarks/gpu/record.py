"""Figures of a part, written to a file as each is found, so that nothing measured is lost when the part ends badly."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from shared import files

TRACEBACK_CHARACTERS = 3000


@dataclasses.dataclass(frozen=True)
class Figure:
    """Something measured.

    Attributes:
        name: what; `predictions.py` knows it by this name.
        value: a number, or a truth.
        unit: of the value; empty for truths, shares and ratios.
        limit: the least or most that this device could do by its measured rates, in the same unit; None if unknown.
        baseline: what the value is compared with, by name; empty if nothing.
        ratio: of the value to the baseline's.
        note: what one must know to read it.
    """

    name: str
    value: float | bool
    unit: str = ""
    limit: float | None = None
    baseline: str = ""
    ratio: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Failure:
    """Something that could not be measured: what, and the end of the traceback."""

    what: str
    error: str


@dataclasses.dataclass
class Record:
    """What a part has found so far.

    Attributes:
        path: the file that holds it; rewritten with every figure.
        figures, failures, notes: in the order in which they were found.
        details: whatever else helps to read them.
        began: seconds of the monotonic clock.
        seconds: how long the part may take in all.
    """

    path: Path
    seconds: float
    figures: list[Figure] = dataclasses.field(default_factory=list)
    failures: list[Failure] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    began: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Seconds that the part may still take."""
        return self.seconds - (time.monotonic() - self.began)

    def add(
        self,
        name: str,
        value: float | bool,
        unit: str = "",
        limit: float | None = None,
        baseline: tuple[str, float] | None = None,
        note: str = "",
    ) -> float:
        """Keeps a figure; `baseline` is a name and its value in the same unit. Returns the value."""
        ratio = None if baseline is None or not baseline[1] else float(value) / baseline[1]
        kept = value if isinstance(value, bool) else float(value)
        self.figures.append(Figure(name, kept, unit, limit, baseline[0] if baseline else "", ratio, note))
        self.save()
        return float(value)

    def detail(self, name: str, value: Any) -> None:
        """Keeps something that is no single figure."""
        self.details[name] = value
        self.save()

    def note(self, text: str) -> None:
        """Keeps a remark for the page."""
        self.notes.append(text)
        self.save()

    def need(self, seconds: float) -> None:
        """Raises `TimeoutError` if the part has less time left than what comes next takes."""
        if self.left < seconds:
            raise TimeoutError(f"{self.left:.0f} s of the part are left, {seconds:.0f} s are needed")

    @contextlib.contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Runs a block whose failure is kept and ends nothing else."""
        began = time.monotonic()
        try:
            yield
        except Exception as error:
            text = str(error) if isinstance(error, TimeoutError) else traceback.format_exc()
            self.failures.append(Failure(what, text[-TRACEBACK_CHARACTERS:]))
        finally:
            self.details.setdefault("seconds", {})[what] = round(time.monotonic() - began, 2)
            self.save()

    def save(self) -> None:
        """Rewrites the file."""
        content = {
            "figures": [dataclasses.asdict(figure) for figure in self.figures],
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "notes": self.notes,
            "details": self.details,
        }
        files.write_json(self.path, content)


def read(path: Path) -> dict[str, Any]:
    """What a part has written; empty lists if it wrote nothing."""
    empty: dict[str, Any] = {"figures": [], "failures": [], "notes": [], "details": {}}
    return empty | json.loads(path.read_text(encoding="utf-8")) if path.exists() else empty
