"""The job `generate`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="generate",
    summary="search trips for the OD pairs of a split",
    schema="student_trainer.generate.config:GenerateConfig",
    run="student_trainer.generate.run:run",
    check="student_trainer.early:check_student",
    flags=(
        Flag("--data", "data", "store to read", "STORE"),
        Flag("--weights", "weights", "a run, its checkpoint, an upstream state_dict, or none", "RUN|FILE"),
        Flag("--split", "split", "train, val or test", "SPLIT"),
        Flag("--out", "out", "directory to write", "GEN"),
    ),
)
