"""The job `compare`: its flags, and where its settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="compare",
    summary="compare arms of runs, over seeds and pair by pair: is the difference real?",
    schema="student_trainer.compare.config:CompareConfig",
    run="student_trainer.compare.run:run",
    check="student_trainer.early:check_evaluations",
    flags=(
        Flag("--evaluations", "evaluations", "directories that `evaluate` wrote", "ONE,OTHER[,OTHER...]"),
        Flag("--out", "out", "directory to write", "COMPARISON"),
    ),
)
