"""What all sections share: options, results and their tables, the machine, medians."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from shared import files
from shared.errors import ReportableError

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parent.parent
TORCH_THREADS = torch.get_num_threads()
"""Of one operation on the CPU, before any engine has set its own."""


class BenchmarkError(ReportableError):
    """What is compared does not agree, or could not be started."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says.

    Attributes:
        quick: a tiny city and few repetitions.
        store: measure on this store; None: each section's own city.
        work: directory for stores and teachers that are made once.
        baseline: another checkout to compare with; None: none.
    """

    quick: bool
    store: Path | None
    work: Path
    baseline: Path | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column is to the left, the others to the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The table as Markdown."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines])


@dataclasses.dataclass(frozen=True)
class Result:
    """What a section found.

    Attributes:
        section: its name.
        title: one line.
        settings: what was measured on, and how; `cities.facts` says which data that was.
        figures: every number of the tables, and their spread.
        tables: for people.
        notes: what one must know to read the tables.
    """

    section: str
    title: str
    settings: dict[str, Any]
    figures: dict[str, Any]
    tables: Sequence[Table]
    notes: Sequence[str]
    date: str = dataclasses.field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    machine: dict[str, Any] = dataclasses.field(default_factory=lambda: machine())

    def markdown(self) -> str:
        """Title, machine, tables, notes."""
        m = self.machine
        on = f"{self.date[:10]}, {m['cpu']}, {m['cores']} cores, torch {m['torch']}, load {m['load']:.1f} at the end"
        notes = "\n".join(f"- {note}" for note in self.notes)
        data = f"Data: {self.settings['data']}"
        parts = [f"# {self.title}", f"{on}  \n{data}", *(table.markdown() for table in self.tables), notes]
        return "\n\n".join(parts) + "\n"

    def write(self, path: Path) -> None:
        """Writes `path`.json and `path`.md."""
        record = {name: value for name, value in vars(self).items() if name != "tables"}
        files.write_json(path.with_suffix(".json"), record)
        files.write_text(path.with_suffix(".md"), self.markdown())


Section = Callable[[Options], Result]


def machine() -> dict[str, Any]:
    """What the figures were measured on; `load` is the machine's load average of the last minute."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "accelerators": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 2),
    }


def rotated(items: Sequence[T], by: int) -> list[T]:
    """The items, beginning with another one each round, so that none is always first."""
    by %= len(items)
    return [*items[by:], *items[:by]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most of what the rounds measured."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Threads of one operation of torch on the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
