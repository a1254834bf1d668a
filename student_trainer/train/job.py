"""The job `train`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="train",
    summary="train a student, with or without a teacher",
    schema="student_trainer.train.config:TrainConfig",
    run="student_trainer.train.run:run",
    check="student_trainer.early:check_run",
    log_format="log.format",
    flags=(
        Flag("--data", "data", "store to train on", "STORE"),
        Flag(
            "--teacher",
            "teacher",
            "teachers, a name (dns:///...) or none",
            "HOST:PORT[,HOST:PORT...]",
        ),
        Flag("--out", "out", "directory of the run", "RUN"),
        Flag("--resume", "resume", "continue the run from its last checkpoint", is_switch=True),
        Flag("--continue-to", "continue_to", "continue it to more epochs than it was begun with", "EPOCHS"),
    ),
)
