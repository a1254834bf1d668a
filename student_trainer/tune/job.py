"""The job `tune`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="tune",
    summary="search settings of the distillation, and find out whether the best is better than none",
    schema="student_trainer.tune.config:TuneConfig",
    run="student_trainer.tune.run:run",
    extra="tune",
    check="student_trainer.tune.plan:check",
    log_format="train.log.format",
    flags=(
        Flag("--data", "data", "store to train on", "STORE"),
        Flag("--teacher", "teacher", "one teacher for all trials, as for train", "HOST:PORT[,HOST:PORT...]"),
        Flag("--out", "out", "directory of the study", "STUDY"),
        Flag("--study", "study", "its name", "NAME"),
        Flag("--trials", "trials", "trials of the search", "N"),
        Flag("--workers", "workers", "processes here", "N"),
        Flag("--skip", "skip", "phases to leave out: 0, 1, 2, 3", "PHASE[,PHASE...]"),
        Flag("--dry-run", "dry_run", "print what would happen, and end", is_switch=True),
    ),
)
