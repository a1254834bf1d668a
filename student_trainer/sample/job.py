"""The job `sample`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="sample",
    summary="draw trips from a teacher on the road network, to train on",
    schema="student_trainer.sample.config:SampleConfig",
    run="student_trainer.sample.run:run",
    check="student_trainer.early:check_store",
    flags=(
        Flag("--data", "data", "store whose roads they are on", "STORE"),
        Flag("--teacher", "teacher", "teachers, as for train", "HOST:PORT[,HOST:PORT...]"),
        Flag("--trips", "trips", "trips to draw", "N"),
        Flag("--out", "out", "directory to write", "SAMPLED"),
    ),
)
