"""The job `answer`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
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
)
