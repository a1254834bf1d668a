"""The job `evaluate`: its flags, and where its settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="evaluate",
    summary="measure generated trips against real ones",
    schema="student_trainer.evaluate.config:EvaluateConfig",
    run="student_trainer.evaluate.run:run",
    check="student_trainer.early:check_student",
    flags=(
        Flag("--data", "data", "store that the trips were generated on", "STORE"),
        Flag("--trips", "trips", "directory that `generate` or `sample` wrote", "GENERATED"),
        Flag("--weights", "weights", "also measure these weights' next-road predictions", "RUN|FILE"),
        Flag("--out", "out", "directory to write", "EVALUATION"),
    ),
)
