"""The job `export`: its flags, and where its settings and its code are."""

from __future__ import annotations

from shared.cli import Flag, Job

JOB = Job(
    "export",
    "turns an upstream LM-TAD checkpoint into a teacher file",
    "teacher_server.lmtad.config:ExportConfig",
    "teacher_server.lmtad.export:run",
    (
        Flag("--checkpoint", "checkpoint", "upstream checkpoint, training or weights-only", "FILE"),
        Flag("--out", "out", "teacher file to write", "TEACHER"),
        Flag("--grid-rows", "grid_rows", "rows of the grid, south to north", "R"),
        Flag("--grid-cols", "grid_cols", "columns of the grid, west to east", "C"),
        Flag("--cell-size", "cell_size", "cell size, degrees: one number, or LAT,LNG", "DEG"),
        Flag("--bounds", "bounds", "bounds, degrees", ("LAT0", "LNG0", "LAT1", "LNG1"), nargs=4),
    ),
    check="teacher_server.early:check_export",
)
