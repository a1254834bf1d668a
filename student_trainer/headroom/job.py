"""The job `headroom`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="headroom",
    summary="estimate what a teacher can still teach a student, before distilling",
    schema="student_trainer.headroom.config:HeadroomConfig",
    run="student_trainer.headroom.run:run",
    check="student_trainer.early:check_student",
    flags=(
        Flag("--data", "data", "store that both know", "STORE"),
        Flag("--teacher", "teacher", "teachers, as for train", "HOST:PORT[,HOST:PORT...]"),
        Flag("--weights", "weights", "a run, its checkpoint, or an upstream state_dict", "RUN|FILE"),
        Flag("--split", "split", "train, val or test", "SPLIT"),
        Flag("--trips", "trips", "trips to measure on", "N"),
    ),
)
