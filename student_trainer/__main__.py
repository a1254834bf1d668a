"""`student-trainer`, or `python -m student_trainer`: the job table."""

from __future__ import annotations

import os
import sys

from shared import cli
from shared.cli import Flag, Job

JOBS = (
    Job(
        name="demo-city",
        summary="write a synthetic city in HOSER format",
        schema="student_trainer.demo_city.config:DemoCityConfig",
        run="student_trainer.demo_city.run:run",
        flags=(Flag("--out", "out", "directory to write", "RAW"),),
    ),
    Job(
        name="convert",
        summary="turn a network (GeoJSON, OpenStreetMap) and trips as rows (CSV) into a raw HOSER directory",
        schema="student_trainer.convert.config:ConvertConfig",
        run="student_trainer.convert.run:run",
        check="student_trainer.early:check_convert",
        flags=(
            Flag("--roads", "roads", "the network: .geojson, .osm or .osm.pbf", "FILE"),
            Flag("--trips", "trips", "trips, a row for each road: trip, road, time", "FILE.csv"),
            Flag("--out", "out", "directory to write", "RAW"),
        ),
    ),
    Job(
        name="prepare",
        summary="turn a raw HOSER directory into a store: features, zones, tokens, statistics",
        schema="student_trainer.prepare.config:PrepareConfig",
        run="student_trainer.prepare.run:run",
        flags=(
            Flag("--raw", "raw", "directory in HOSER format", "RAW"),
            Flag("--out", "out", "store to write", "STORE"),
            Flag("--strict", "strict", "refuse unusable trips instead of dropping them", is_switch=True),
        ),
    ),
    Job(
        name="train",
        summary="train a student, with or without a teacher",
        schema="student_trainer.train.config:TrainConfig",
        run="student_trainer.train.run:run",
        check="student_trainer.early:check_run",
        log_format="log.format",
        flags=(
            Flag("--data", "data", "store to train on", "STORE"),
            Flag(
                "--teacher",
                "teacher",
                "teachers, a name (dns:///...) or none",
                "HOST:PORT[,HOST:PORT...]",
            ),
            Flag("--out", "out", "directory of the run", "RUN"),
            Flag("--resume", "resume", "continue the run from its last checkpoint", is_switch=True),
            Flag("--continue-to", "continue_to", "continue it to more epochs than it was begun with", "EPOCHS"),
        ),
    ),
    Job(
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
    ),
    Job(
        name="headroom",
        summary="estimate what a teacher can still teach a student, before distilling",
        schema="student_trainer.headroom.config:HeadroomConfig",
        run="student_trainer.headroom.run:run",
        check="student_trainer.early:check_pupil",
        flags=(
            Flag("--data", "data", "store that both know", "STORE"),
            Flag("--teacher", "teacher", "teachers, as for train", "HOST:PORT[,HOST:PORT...]"),
            Flag("--weights", "weights", "a run, its checkpoint, or an upstream state_dict", "RUN|FILE"),
            Flag("--split", "split", "train, val or test", "SPLIT"),
            Flag("--trips", "trips", "trips to measure on", "N"),
        ),
    ),
    Job(
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
    ),
    Job(
        name="predict",
        summary="write a student's per-step logits and travel times, or print the next roads of one trip",
        schema="student_trainer.predict.config:PredictConfig",
        run="student_trainer.predict.run:run",
        check="student_trainer.early:check_student",
        flags=(
            Flag("--data", "data", "store to read", "STORE"),
            Flag("--weights", "weights", "checkpoint of a run, or an upstream state_dict", "FILE"),
            Flag("--split", "split", "train, val or test", "SPLIT"),
            Flag("--out", "out", "file to write", "FILE.npz"),
            Flag("--trip", "trip", "instead: roads of a trip under way, the current one last", "ROAD[,ROAD...]"),
            Flag("--destination", "destination", "where that trip ends", "ROAD"),
        ),
    ),
    Job(
        name="export",
        summary="write a student as one file that torch runs without this project",
        schema="student_trainer.predict.config:ExportConfig",
        run="student_trainer.predict.export:run",
        check="student_trainer.early:check_student",
        section="export-student",
        flags=(
            Flag("--data", "data", "store to read", "STORE"),
            Flag("--weights", "weights", "checkpoint of a run, or an upstream state_dict", "FILE"),
            Flag("--out", "out", "file to write", "FILE.pt2"),
        ),
    ),
    Job(
        name="generate",
        summary="search trips for the OD pairs of a split",
        schema="student_trainer.generate.config:GenerateConfig",
        run="student_trainer.generate.run:run",
        check="student_trainer.early:check_student",
        flags=(
            Flag("--data", "data", "store to read", "STORE"),
            Flag("--weights", "weights", "checkpoint of a run, an upstream state_dict, or none", "FILE"),
            Flag("--split", "split", "train, val or test", "SPLIT"),
            Flag("--out", "out", "directory to write", "GEN"),
        ),
    ),
    Job(
        name="evaluate",
        summary="measure generated trips against real ones",
        schema="student_trainer.evaluate.config:EvaluateConfig",
        run="student_trainer.evaluate.run:run",
        check="student_trainer.early:check_student",
        flags=(
            Flag("--data", "data", "store that the trips were generated on", "STORE"),
            Flag("--trips", "trips", "directory that `generate` or `sample` wrote", "GENERATED"),
            Flag("--weights", "weights", "also measure these weights' next-road predictions", "FILE"),
            Flag("--out", "out", "directory to write", "EVALUATION"),
        ),
    ),
    Job(
        name="compare",
        summary="compare arms of runs, over seeds and pair by pair: is the difference real?",
        schema="student_trainer.evaluate.config:CompareConfig",
        run="student_trainer.evaluate.compare:run",
        check="student_trainer.early:check_evaluations",
        flags=(
            Flag("--evaluations", "evaluations", "directories that `evaluate` wrote", "ONE,OTHER[,OTHER...]"),
            Flag("--out", "out", "directory to write", "COMPARISON"),
        ),
    ),
    Job(
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
    ),
    Job(
        name="bundle",
        summary="a report and what it is about in one archive",
        schema="student_trainer.report.config:BundleConfig",
        run="student_trainer.report.bundle:run",
        check="student_trainer.early:check_report",
        flags=(
            Flag("--report", "report", "directory that `report` wrote", "REPORT"),
            Flag("--weights", "weights", "files of weights to add", "FILE[,FILE...]"),
            Flag("--runs", "runs", "directories that `train` wrote, to add", "RUN[,RUN...]"),
            Flag("--out", "out", "archive to write", "FILE.zip"),
        ),
    ),
    Job(
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
    ),
)


def main() -> int:
    """Runs the command line; returns the exit code."""
    # gRPC's core, which reads this when it is imported, writes lines of its own; what they say is in the errors, too.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    return cli.main("student-trainer", "Trains HOSER, with a remote LM-TAD teacher or without.", JOBS, extra="trainer")


if __name__ == "__main__":
    sys.exit(main())
