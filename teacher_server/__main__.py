"""The command line: `teacher-server COMMAND`, or `python -m teacher_server COMMAND`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from shared import cli
from shared.cli import Flag, Job

JOBS = (
    Job(
        "export",
        "turns an upstream LM-TAD checkpoint into a teacher file",
        "teacher_server.lmtad.config:ExportConfig",
        "teacher_server.lmtad.export:run",
        (
            Flag("--checkpoint", "checkpoint", "upstream checkpoint, training or weights-only", "FILE"),
            Flag("--out", "out", "teacher file to write", "TEACHER"),
            Flag("--grid-rows", "grid_rows", "rows of the grid, south to north", "R"),
            Flag("--grid-cols", "grid_cols", "columns of the grid, west to east", "C"),
            Flag("--cell-size", "cell_size", "cell size, degrees: one number, or LAT,LNG", "DEG"),
            Flag("--bounds", "bounds", "bounds, degrees", ("LAT0", "LNG0", "LAT1", "LNG1"), nargs=4),
        ),
        check="teacher_server.early:check_export",
    ),
    Job(
        "pretrain",
        "trains an LM-TAD teacher on a store",
        "teacher_server.pretrain.config:PretrainConfig",
        "teacher_server.pretrain.run:run",
        (
            Flag("--data", "data", "store that `student-trainer prepare` wrote", "STORE"),
            Flag("--out", "out", "teacher file to write", "TEACHER"),
            Flag("--resume", "resume", "go on from the last checkpoint in OUT.run", is_switch=True),
        ),
        check="teacher_server.early:check_pretrain",
    ),
    Job(
        "serve",
        "serves a teacher to trainers",
        "teacher_server.serve.config:ServeConfig",
        "teacher_server.serve.run:serve",
        (
            Flag("--teacher", "teacher", "teacher file", "TEACHER"),
            Flag("--listen", "listen", "HOST:PORT or unix:PATH (default 127.0.0.1:50051)", "ADDRESS"),
            Flag("--insecure", "insecure", "listen beyond this machine without encryption", is_switch=True),
            Flag("--metrics-listen", "metrics_listen", "HOST:PORT or off (default 127.0.0.1:9464)", "ADDRESS"),
        ),
        check="teacher_server.early:check_serve",
        log_format="log.format",
    ),
    Job(
        "answer",
        "writes all answers that training on a store needs into a file",
        "teacher_server.offline.config:AnswerConfig",
        "teacher_server.offline.run:run",
        (
            Flag("--data", "data", "store that `student-trainer prepare` wrote", "STORE"),
            Flag("--out", "out", "answers file to write", "ANSWERS"),
            Flag("--teacher", "teacher", "teacher file", "TEACHER"),
            Flag("--address", "address", "HOST:PORT or unix:PATH of a running server", "ADDRESS"),
        ),
        check="teacher_server.early:check_answer",
    ),
    Job(
        "info",
        "says what a teacher file, or a running server, is",
        "teacher_server.client.config:InfoConfig",
        "teacher_server.client.info:run",
        (
            Flag("--teacher", "teacher", "teacher file", "TEACHER"),
            Flag("--address", "address", "HOST:PORT or unix:PATH of a running server", "ADDRESS"),
            Flag("--wait", "wait", "wait so long for a server that is loading, or not there yet", "SECONDS"),
        ),
    ),
    Job(
        "query",
        "asks a running server one question",
        "teacher_server.client.config:QueryConfig",
        "teacher_server.client.query:run",
        (
            Flag("--address", "address", "HOST:PORT or unix:PATH of the server", "ADDRESS"),
            Flag("--history", "history", "cell tokens so far, oldest first; empty: SOT alone", "1,2,3"),
            Flag("--candidates", "candidates", "cell tokens to compare", "4,5,6"),
            Flag("--wait", "wait", "wait so long for a server that is loading, or not there yet", "SECONDS"),
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns the exit code."""
    # gRPC's core, which reads this when it is imported, would write a line on stderr for each call that it refuses.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    description = "The LM-TAD teacher: makes, serves and questions it."
    return cli.main("teacher-server", description, JOBS, argv, extra="teacher")


if __name__ == "__main__":
    sys.exit(main())
