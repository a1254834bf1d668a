"""The job `pipeline`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    name="pipeline",
    summary="all models of a directory: trips, metrics, comparisons, reports; only what is not done",
    schema="student_trainer.pipeline.config:PipelineConfig",
    run="student_trainer.pipeline.run:run",
    extra="report",
    check="student_trainer.early:check_store",
    flags=(
        Flag("--data", "data", "store that `prepare` wrote", "STORE"),
        Flag("--models", "models", "directory of runs, or of .pth files", "DIR"),
        Flag("--only", "only", "phases: generate, evaluate, compare, report", "PHASE[,PHASE...]"),
        Flag("--force", "force", "run again what is done", is_switch=True),
        Flag("--dry-run", "dry_run", "print what would happen, and end", is_switch=True),
        Flag("--out", "out", "directory to write", "OUT"),
    ),
)
