"""The jobs `info` and `query`: their flags, and where their settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

INFO = Job(
    "info",
    "says what a teacher file, or a running server, is",
    "teacher_server.client.config:InfoConfig",
    "teacher_server.client.info:run",
    (
        Flag("--teacher", "teacher", "teacher file", "TEACHER"),
        Flag("--address", "address", "HOST:PORT or unix:PATH of a running server", "ADDRESS"),
        Flag("--wait", "wait", "wait so long for a server that is loading, or not there yet", "SECONDS"),
    ),
)

QUERY = Job(
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
)
