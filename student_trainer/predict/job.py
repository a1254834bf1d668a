"""The jobs `predict` and `export`: their flags, and where their settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

PREDICT = Job(
    name="predict",
    summary="write a student's per-step logits and travel times, or print the next roads of one trip",
    schema="student_trainer.predict.config:PredictConfig",
    run="student_trainer.predict.run:run",
    check="student_trainer.early:check_student",
    flags=(
        Flag("--data", "data", "store to read", "STORE"),
        Flag("--weights", "weights", "a run, its checkpoint, or an upstream state_dict", "RUN|FILE"),
        Flag("--split", "split", "train, val or test", "SPLIT"),
        Flag("--out", "out", "file to write", "FILE.npz"),
        Flag("--trip", "trip", "instead: roads of a trip under way, the current one last", "ROAD[,ROAD...]"),
        Flag("--destination", "destination", "where that trip ends", "ROAD"),
    ),
)

EXPORT = Job(
    name="export",
    summary="write a student as one file that torch runs without this project",
    schema="student_trainer.predict.config:ExportConfig",
    run="student_trainer.predict.export:run",
    check="student_trainer.early:check_student",
    section="export-student",
    flags=(
        Flag("--data", "data", "store to read", "STORE"),
        Flag("--weights", "weights", "a run, its checkpoint, or an upstream state_dict", "RUN|FILE"),
        Flag("--out", "out", "file to write", "FILE.pt2"),
    ),
)
