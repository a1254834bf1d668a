"""The jobs `evaluate` and `compare`: their flags, and where their settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

EVALUATE = Job(
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

COMPARE = Job(
    name="compare",
    summary="compare arms of runs, over seeds and pair by pair: is the difference real?",
    schema="student_trainer.evaluate.config:CompareConfig",
    run="student_trainer.evaluate.compare:run",
    check="student_trainer.early:check_evaluations",
    flags=(
        Flag("--evaluations", "evaluations", "directories that `evaluate` wrote", "ONE,OTHER[,OTHER...]"),
        Flag("--out", "out", "directory to write", "COMPARISON"),
    ),
)
