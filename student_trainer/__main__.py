"""`student-trainer`, or `python -m student_trainer`: the job table."""

from __future__ import annotations

import os
import sys

from shared import cli, jobs

JOBS = cli.declared(jobs.STUDENT_TRAINER)


def main() -> int:
    """Runs the command line; returns the exit code."""
    # gRPC's core, which reads this when it is imported, writes lines of its own; what they say is in the errors, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return cli.main("student-trainer", "Trains students, with a remote teacher or without.", JOBS, extra="trainer")


if __name__ == "__main__":
    sys.exit(main())
