"""The job `convert`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
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
)
