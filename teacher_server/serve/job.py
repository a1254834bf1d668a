"""The job `serve`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
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
)
