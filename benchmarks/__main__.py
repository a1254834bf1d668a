"""The command line: a table of sections; each measures, and its result is printed and kept.

OUT/<section>.json   figures, settings, machine
OUT/<section>.md     the tables that are printed
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import REPOSITORY, Options, Section
from shared import log
from shared.errors import ReportableError

SECTIONS = {
    "teacher": "positions a second of the teacher in the process, first and second pass",
    "server": "what the daemon takes from the engine",
    "host": "microseconds that the processor takes for a new row and a known one, with a model that costs nothing",
    "prefixes": "where it pays to compute a prefix that contexts share once",
    "overlap": "step time of the trainer: without a teacher, waiting for one, and asking it ahead",
    "peers": "requests a second of other servers with the same teacher, and of this one",
    "fairness": "latency of a light client alone, and beside one that saturates the teacher",
    "memory": "resident size of a server whose cache evicts all the time, and bytes of a remembered position",
    "prepare": "time from raw files to features against straightforward code, and of a whole city by part",
    "collate": "time to build a batch against straightforward code, and the share of padding by order",
    "step": "time and memory of a training step against a straightforward one",
    "footprint": "memory, time and disk of preparing, opening and training on a city of 629,380 trips",
    "hidden": "time of an epoch with a real teacher on its own core, against one without",
    "scaling": "step time of one rank and of two, on the cores of this machine",
    "generation": "trips a second of beam search, batched and incremental, against one trip and all steps anew",
    "latency": "milliseconds of one question for the next road, alone and 64 at once; in Python and as exported",
    "evaluation": "time to measure generated trips, against plain loops",
}
"""Names of modules of this package, each with a function `run`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the sections; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    sections, out, options = _parse(argv)
    log.setup("warning")
    try:
        for name in sections:
            run: Section = importlib.import_module(f"benchmarks.{name}").run
            result = run(options)
            result.write(out / name)
            print(result.markdown(), flush=True)
    except ReportableError as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> tuple[list[str], Path, Options]:
    lines = [f"  {name:10}{summary}" for name, summary in SECTIONS.items()]
    parser = argparse.ArgumentParser(
        "benchmarks", epilog="\n".join(["sections:", *lines]), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="what to measure; default: all")
    parser.add_argument("--quick", action="store_true", help="a tiny city: shows that it works, in seconds")
    parser.add_argument("--store", type=Path, help="measure on this store instead of the section's own city")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench", help="directory for stores and teachers")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="directory of results")
    parser.add_argument("--baseline", type=Path, help="section host: another checkout, measured in turns with this one")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.sections if name not in SECTIONS]:
        parser.error(f"no section {', '.join(unknown)}; sections are {', '.join(SECTIONS)}")
    options = Options(arguments.quick, arguments.store, arguments.work, arguments.baseline)
    return arguments.sections or list(SECTIONS), arguments.out, options


if __name__ == "__main__":
    sys.exit(main())
