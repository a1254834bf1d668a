"""The command line: `teacher-server COMMAND`, or `python -m teacher_server COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from shared import cli, jobs

JOBS = cli.declared(jobs.TEACHER_SERVER)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    # gRPC's core, which reads this when it is imported, would write a line on stderr for each call that it refuses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    description = "The LM-TAD teacher: makes, serves and questions it."
    return cli.main("teacher-server", description, JOBS, argv, extra="teacher")


if __name__ == "__main__":
    sys.exit(main())
