"""The command line: starts a daemon and its clients, samples, judges; exits with 1 if anything grew or went wrong."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import REPOSITORY
from benchmarks.soak import run
from shared import log
from shared.errors import ReportableError


def main(argv: Sequence[str] | None = None) -> int:
    """Soaks a daemon; returns the exit code (0 sound, 1 not, 2 it could not be tried, 130 interrupted)."""
    parser = argparse.ArgumentParser("benchmarks.soak", description="a daemon at full load for a long time")
    parser.add_argument("--minutes", type=float, default=30.0, help="of load")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".bench", help="directory of the teacher")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="directory of results")
    arguments = parser.parse_args(argv)
    log.setup("warning")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # daemon and clients are to end with this process
    try:
        soaked = run.run(60 * arguments.minutes, arguments.every, arguments.work)
        result = run.report(soaked)
        result.write(arguments.out / "soak")
        run.draw(soaked.samples, arguments.out / "soak.png")
    except ReportableError as error:
        print(f"benchmarks.soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks.soak: interrupted", file=sys.stderr)
        return 130
    print(result.markdown())
    return 0 if result.figures["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
