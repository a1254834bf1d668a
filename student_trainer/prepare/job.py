"""The job `prepare`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="prepare",
    summary="turn a raw HOSER directory into a store: features, zones, tokens, statistics",
    schema="student_trainer.prepare.config:PrepareConfig",
    run="student_trainer.prepare.run:run",
    flags=(
        Flag("--raw", "raw", "directory in HOSER format", "RAW"),
        Flag("--out", "out", "store to write", "STORE"),
        Flag("--strict", "strict", "refuse unusable trips instead of dropping them", is_switch=True),
    ),
)
