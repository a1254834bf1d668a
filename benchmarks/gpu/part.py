"""One part in this process; its figures, and what failed, in a file."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.record import Record
from benchmarks.gpu.task import Task
from shared import log

PARTS = {
    "machine": "machine:run",
    "tests": "tests:run",
    "teacher": "teacher:run",
    "compiled": "teacher:compiled",
    "daemon": "daemon:run",
    "student": "student:run",
    "train": "train:run",
    "generate": "generate:run",
}
"""Module and function of each part, in the order in which they run."""

Part = Callable[[Task, Record], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a part; what fails is in its record. Returns 0, or 1 if anything failed."""
    parser = argparse.ArgumentParser("benchmarks.gpu.part", description=main.__doc__)
    parser.add_argument("name", choices=PARTS)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args(argv)
    log.setup("warning")
    record = Record(arguments.out, arguments.seconds)
    with record.attempt(arguments.name):
        device = torch.device("cuda", 0) if arguments.device == "cuda" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        module, _, function = PARTS[arguments.name].partition(":")
        run: Part = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)
        run(Task(arguments.store, arguments.work, device), record)
    return 1 if record.failures else 0


if __name__ == "__main__":
    sys.exit(main())
