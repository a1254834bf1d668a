"""The jobs `report` and `bundle`: their flags, and where their settings and code are."""

from __future__ import annotations

from shared.cli import Flag, Job

REPORT = Job(
    name="report",
    summary="tables, charts and a map of evaluated trips in one HTML file",
    schema="student_trainer.report.config:ReportConfig",
    run="student_trainer.report.run:run",
    extra="report",
    check="student_trainer.early:check_evaluations",
    flags=(
        Flag("--data", "data", "store that the trips were generated on", "STORE"),
        Flag("--evaluations", "evaluations", "directories that `evaluate` wrote", "ONE[,OTHER...]"),
        Flag("--comparison", "comparison", "directory that `compare` wrote", "COMPARISON"),
        Flag("--runs", "runs", "directories that `train` wrote, for training curves", "RUN[,RUN...]"),
        Flag("--study", "study", "optuna_results/NAME, which `tune` wrote", "STUDY"),
        Flag("--out", "out", "directory to write", "REPORT"),
    ),
)

BUNDLE = Job(
    name="bundle",
    summary="a report and what it is about in one archive",
    schema="student_trainer.report.config:BundleConfig",
    run="student_trainer.report.bundle:run",
    check="student_trainer.early:check_report",
    flags=(
        Flag("--report", "report", "directory that `report` wrote", "REPORT"),
        Flag("--weights", "weights", "runs or files with weights to add", "RUN|FILE[,...]"),
        Flag("--runs", "runs", "directories that `train` wrote, to add", "RUN[,RUN...]"),
        Flag("--out", "out", "archive to write", "FILE.zip"),
    ),
)
