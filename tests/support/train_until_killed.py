"""`student-trainer`, which kills itself with SIGKILL at a moment of its work that the first argument names.

save N         while it writes its Nth archive, half of which is on disk
replace N      before the Nth file takes its name
record N       after half a line of the Nth record of metrics
never 0
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from student_trainer.__main__ import main
from student_trainer.train import logbook


def die() -> None:
    """Ends the process as the kernel would, with nothing flushed or removed."""
    os.kill(os.getpid(), signal.SIGKILL)


def at(number: int, plain: Callable[..., Any], instead: Callable[..., None]) -> Callable[..., Any]:
    """A function whose call of that number does something else."""
    count = itertools.count(1)

    def called(*arguments: Any, **named: Any) -> Any:
        if next(count) == number:
            instead(*arguments, **named)
        return plain(*arguments, **named)

    return called


def half_an_archive(values: Any, path: Path) -> None:
    """Half of the file, then the end."""
    plain_save(values, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


def half_a_record(book: logbook.Logbook, step: int, _: dict[str, float]) -> None:
    """Half of the line, then the end."""
    book._file.write(f'{{"step": {step}, "train/lo')
    book._file.flush()
    die()


plain_save = torch.save

if __name__ == "__main__":
    moment, number = sys.argv.pop(1), int(sys.argv.pop(1))
    if moment == "save":
        torch.save = at(number, torch.save, half_an_archive)
    elif moment == "replace":
        os.replace = at(number, os.replace, lambda *_: die())
    elif moment == "record":
        logbook.Logbook.write = at(number, logbook.Logbook.write, half_a_record)  # type: ignore[method-assign]
    sys.exit(main())
