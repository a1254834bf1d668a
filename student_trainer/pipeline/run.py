"""`student-trainer pipeline`.

OUT/<split>-seed<seed>/trips/<model>         `generate`
OUT/<split>-seed<seed>/evaluations/<model>   `evaluate`
OUT/<split>-seed<seed>/comparison            `compare`
OUT/<split>-seed<seed>/report                `report`
OUT/predictions/                             next-road predictions of each model, for all seeds of pairs
OUT/state/                                   what is done, by fingerprint
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from shared import claims, config, files
from shared.errors import ReportableError
from shared.store import Store
from student_trainer.compare import run as compare
from student_trainer.pipeline import models
from student_trainer.pipeline.config import PipelineConfig
from student_trainer.pipeline.items import Item, Place, plan

log = logging.getLogger(__name__)

NOTHING = "nothing of the phases that are asked for"
Outcome = Literal["done", "was done", "failed", "skipped", "not asked for", "to do"]


def run(settings: PipelineConfig) -> int:
    """Does what is not done; prints the verdicts on stderr and the outcomes as JSON on stdout. 1 if anything failed.

    What failed is left out of comparisons and reports, which are made of the rest.

    Raises:
        ConfigError: there are no models, the baseline is not among them, or another job writes to OUT.
        FileFormatError: `data` is no store.
    """
    store = Store(settings.data)
    found = models.find(settings.models, store, settings.baseline, settings.shortest_path)
    print("\n".join(found.lines()), file=sys.stderr)
    places = plan(settings, found.models, store)
    if settings.dry_run:
        return _tell(settings, places)
    with claims.directory(settings.out):
        claims.check(settings.out, "what a pipeline writes", claims.of("pipeline"))
        return _run(settings, places)


def _tell(settings: PipelineConfig, places: Sequence[Place]) -> int:
    """What there is to do if nothing fails; nothing is written."""
    outcomes: dict[str, Outcome] = {}
    items = [item for place in places for item in (*place.items, *place.together(place.evaluations))]
    for item in items:
        is_stale = settings.force or not item.is_done(settings.out)
        again = is_stale or any(outcomes[need.name] == "to do" for need in item.needs)
        outcomes[item.name] = ("to do" if again else "was done") if _is_asked(item, settings) else "not asked for"
    told = [item for item in items if _is_asked(item, settings)]
    print(_table(told, outcomes, {}) if told else NOTHING, file=sys.stderr)
    print(json.dumps({"out": str(settings.out), "outcomes": outcomes, "reports": []}))
    return 0


def _run(settings: PipelineConfig, places: Sequence[Place]) -> int:
    config.save(settings, "pipeline", settings.out / "config.yaml")
    outcomes: dict[str, Outcome] = {}
    reasons: dict[str, str] = {}
    items: list[Item] = []
    whole = [item for place in places for item in (*place.items, *place.together(place.evaluations))]
    asked = [item.name for item in whole if _is_asked(item, settings)]

    def do(item: Item) -> None:
        started = time.perf_counter()
        number = f"{asked.index(item.name) + 1} of {len(asked)}" if item.name in asked else ""
        if number:
            log.info("%s: %s ...", number, item.name)
        outcome, reason = _do(item, settings, outcomes)
        items.append(item)
        outcomes[item.name], reasons[item.name] = outcome, reason
        took = f", {time.perf_counter() - started:.1f} s" if outcome in ("done", "failed") else ""
        if number:
            log.info("%s: %s: %s%s%s", number, item.name, outcome, took, f": {reason}" if reason else "")

    for place in places:
        for item in place.items:
            do(item)
        broken = {item for item in place.evaluations if outcomes[item.name] in ("failed", "skipped")}
        rest = [item for item in place.evaluations if item not in broken]
        for item in place.together(rest or place.evaluations):
            do(item)
            if broken and outcomes[item.name].endswith("done"):
                reasons[item.name] = f"without {', '.join(sorted(one.name.rpartition('/')[2] for one in broken))}"
    usable = [item for item in items if outcomes[item.name].endswith("done")]
    told = [
        item for item in items if outcomes[item.name] != "not asked for" and (item not in usable or reasons[item.name])
    ]  # the log has told of all others
    counts = Counter(outcomes.values())
    lines = [_table(told, outcomes, reasons)] if told else []
    lines += [", ".join(f"{count} {outcome}" for outcome, count in counts.items()), *_verdicts(usable)]
    print("\n".join(lines), file=sys.stderr)
    reports = [str(item.result) for item in usable if item.phase == "report"]
    print(json.dumps({"out": str(settings.out), "outcomes": outcomes, "reports": reports}))
    return 1 if {"failed", "skipped"} & set(outcomes.values()) else 0


def _verdicts(items: Sequence[Item]) -> Iterator[str]:
    """What a user has waited for: the first sentences of each comparison, and where the reports are."""
    for item in items:
        if item.phase == "compare":
            document = json.loads(item.result.read_text(encoding="utf-8"))
            if sentences := compare.leading(document):
                yield f"{item.name}, {document['pairs']} pairs of {document['split']}:"
                note = document["steps_note"] and f"note: {document['steps_note']}"
                yield from (f"  {sentence}" for sentence in (*sentences, document["coverage"], note) if sentence)
    yield from (f"open {item.result}" for item in items if item.phase == "report")


def _do(item: Item, settings: PipelineConfig, outcomes: dict[str, Outcome]) -> tuple[Outcome, str]:
    """What became of an item, and why."""
    out = settings.out
    if not _is_asked(item, settings):
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


def _is_asked(item: Item, settings: PipelineConfig) -> bool:
    return not settings.only or item.phase in settings.only


def _is_usable(item: Item, outcome: Outcome, out: Path) -> bool:
    return outcome in ("done", "was done") and item.is_done(out)


def _why(outcome: Outcome) -> str:
    return {"failed": "failed", "skipped": "was skipped"}.get(outcome, "is not done; run its phase, too")


def _table(items: Sequence[Item], outcomes: dict[str, Outcome], reasons: Mapping[str, str]) -> str:
    width = max(len(item.name) for item in items)
    lines = [
        f"{item.name:<{width}}  {outcomes[item.name]:<13}  {reasons.get(item.name, '')}".rstrip() for item in items
    ]
    return "\n".join(lines)
