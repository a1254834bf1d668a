"""The job `pretrain`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
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
)
