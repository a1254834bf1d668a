"""`student-trainer report`.

OUT/report.html      opens offline
OUT/figures/         every chart as PNG and SVG
OUT/trips/           the real trips and those of each model as GeoJSON
OUT/evaluations/     what was shown: metrics.json of each model, comparison.json
OUT/config.yaml      settings
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

from shared import claims, config, files
from shared.store import Trips
from student_trainer.report import content as contents
from student_trainer.report import figures, geojson, html, map_data
from student_trainer.report.config import ReportConfig
from student_trainer.report.content import Content
from student_trainer.runs.layout import COMPARISON, EVALUATION, REPORT

log = logging.getLogger(__name__)


def run(settings: ReportConfig) -> int:
    """Writes the report; prints where it is and how large as JSON on stdout."""
    page = write(settings)
    print(json.dumps({"out": str(settings.out), "report": str(page), "bytes": page.stat().st_size}))
    return 0


def write(settings: ReportConfig) -> Path:
    """Writes the report and returns its page.

    Raises:
        FileFormatError, CompatibilityError, ConfigError: see `contents.read`.
        ConfigError: OUT holds something else than a report, or another job writes there.
    """
    content = contents.read(settings)
    with claims.directory(settings.out):
        claims.check(settings.out, "a report", lambda out: (out / REPORT).exists() or (out / "evaluations").is_dir())
        with files.atomic_directory(settings.out) as folder:
            _write(content, settings, folder)
    page = settings.out / REPORT
    log.info("wrote %s; open it in a browser", page)
    return page


def _write(content: Content, settings: ReportConfig, folder: Path) -> None:
    values = content.as_dict()
    rows = map_data.choose(content, settings.map_pairs, settings.seed)
    page = html.render(values, map_data.network(content.store), map_data.pairs(content, rows), content.study)
    files.write_text(folder / REPORT, page)
    figures.write(values, folder / "figures")
    _write_trips(content, folder / "trips")
    (folder / "evaluations").mkdir()
    for evaluation in content.evaluations:
        name = f"{file_name(evaluation.name)}.json"
        shutil.copyfile(evaluation.path / EVALUATION, folder / "evaluations" / name)
    if settings.comparison is not None:
        shutil.copyfile(settings.comparison / COMPARISON, folder / "evaluations" / COMPARISON)
    config.save(settings, "report", folder / "config.yaml")


def _write_trips(content: Content, folder: Path) -> None:
    folder.mkdir()
    pairs = content.generated[0].pair
    sides: list[tuple[str, Trips, dict[str, Any]]] = [("real", content.real, {})]
    for evaluation, made in zip(content.evaluations, content.generated, strict=True):
        measured = {name: evaluation.pairs[name].to_numpy() for name in map_data.columns()}
        sides.append((f"model-{file_name(evaluation.name)}", made.trips, {"status": made.status, **measured}))
    for name, trips, properties in sides:
        document = geojson.collection(content.store, trips, pairs, properties)
        files.write_text(folder / f"{name}.geojson", json.dumps(document, separators=(",", ":"), allow_nan=False))


def file_name(name: str) -> str:
    """A model's name as part of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-") or "model"
