"""`student-trainer pipeline`.

OUT/<split>-seed<seed>/trips/<model>         `generate`
OUT/<split>-seed<seed>/evaluations/<model>   `evaluate`
OUT/<split>-seed<seed>/comparison            `compare`
OUT/<split>-seed<seed>/report                `report`
OUT/state/                                   what is done, by fingerprint
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from shared import claims, config, files
from shared.errors import ReportableError
from shared.store import Store
from student_trainer.pipeline import models
from student_trainer.pipeline.config import PipelineConfig
from student_trainer.pipeline.items import Item, plan

log = logging.getLogger(__name__)

Outcome = Literal["done", "was done", "failed", "skipped", "not asked for"]


def run(settings: PipelineConfig) -> int:
    """Does what is not done; prints a table on stderr and the outcomes as JSON on stdout. 1 if anything failed.

    Raises:
        ConfigError: there are no models, the baseline is not among them, or another job writes to OUT.
        FileFormatError: `data` is no store.
    """
    store = Store(settings.data)
    items = plan(settings, models.find(settings.models, settings.baseline, settings.shortest_path), store)
    with claims.directory(settings.out):
        return _run(settings, items)


def _run(settings: PipelineConfig, items: Sequence[Item]) -> int:
    config.save(settings, "pipeline", settings.out / "config.yaml")
    outcomes: dict[str, Outcome] = {}
    reasons: dict[str, str] = {}
    for number, item in enumerate(items, start=1):
        started = time.perf_counter()
        outcome, reason = _do(item, settings, outcomes)
        outcomes[item.name], reasons[item.name] = outcome, reason
        took = f", {time.perf_counter() - started:.1f} s" if outcome in ("done", "failed") else ""
        log.info("%d of %d: %s: %s%s%s", number, len(items), item.name, outcome, took, f": {reason}" if reason else "")
    print(_table(items, outcomes, reasons), file=sys.stderr)
    reports = [str(item.result) for item in items if item.phase == "report" and outcomes[item.name].endswith("done")]
    print(json.dumps({"out": str(settings.out), "outcomes": outcomes, "reports": reports}))
    return 1 if {"failed", "skipped"} & set(outcomes.values()) else 0


def _do(item: Item, settings: PipelineConfig, outcomes: dict[str, Outcome]) -> tuple[Outcome, str]:
    """What became of an item, and why."""
    out = settings.out
    if settings.only and item.phase not in settings.only:
        return ("was done", "") if item.is_done(out) else ("not asked for", "")
    missing = [need.name for need in item.needs if not _is_usable(need, outcomes[need.name], out)]
    if missing:
        return "skipped", f"needs {missing[0]}, which {_why(outcomes[missing[0]])}"
    if not settings.force and item.is_done(out):
        return "was done", ""
    for path in (item.record(out), item.result):  # jobs that recognise finished work by themselves do it again
        files.remove(path)
    try:
        item.run()
    except (ReportableError, OSError) as error:
        return "failed", str(error)
    except Exception as error:
        log.exception("%s failed unexpectedly", item.name)
        return "failed", f"{type(error).__name__}: {error}"
    item.mark_done(out)
    return "done", ""


def _is_usable(item: Item, outcome: Outcome, out: Path) -> bool:
    return outcome in ("done", "was done") and item.is_done(out)


def _why(outcome: Outcome) -> str:
    return {"failed": "failed", "skipped": "was skipped"}.get(outcome, "is not done; run its phase, too")


def _table(items: Sequence[Item], outcomes: dict[str, Outcome], reasons: dict[str, str]) -> str:
    width = max(len(item.name) for item in items)
    lines = [f"{item.name:<{width}}  {outcomes[item.name]:<13}  {reasons[item.name]}".rstrip() for item in items]
    return "\n".join(lines)
