"""The job `demo-city`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="demo-city",
    summary="write a synthetic city in HOSER format",
    schema="student_trainer.demo_city.config:DemoCityConfig",
    run="student_trainer.demo_city.run:run",
    flags=(Flag("--out", "out", "directory to write", "RAW"),),
)
