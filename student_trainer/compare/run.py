"""`student-trainer compare`: arms of runs against a baseline, over seeds and pair by pair on the same OD pairs.

OUT/comparison.json   of each metric: every arm's mean and spread; every difference, its interval, tests and verdict
OUT/config.yaml       settings
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from shared import claims, config, files, provenance
from student_trainer.compare import arms, differences, verdicts
from student_trainer.compare.arms import Arm, Model
from student_trainer.compare.config import CompareConfig
from student_trainer.compare.differences import Difference
from student_trainer.evaluate.evaluation import Evaluation, check_names, check_same, floors_of, read
from student_trainer.runs.layout import COMPARISON

FORMAT = "hoser-comparison/2"
"""2: of arms rather than of models."""

LEADING = 3
"""Sentences about an arm that are told where few are."""


def run(settings: CompareConfig) -> int:
    """Compares, writes, prints the verdicts on stderr and where the file is as JSON on stdout."""
    document = compare(settings)
    note = document["steps_note"] and f"note: {document['steps_note']}"
    found_lines = [*verdicts_of(document), document["coverage"], *references_of(document)]
    lines = [document["baseline_choice"], note, *found_lines, document["left_out"]]
    print("\n".join(filter(None, lines)), file=sys.stderr)
    found = {key: document[key] for key in ("baseline", "models")}
    print(json.dumps({"out": str(settings.out), **found, "arms": [arm["name"] for arm in document["arms"]]}))
    return 0


def verdicts_of(document: Mapping[str, Any]) -> list[str]:
    """The sentences of a comparison, in the order of the questions."""
    return [
        metric["comparisons"][arm["name"]]["verdict"]
        for arm in document["arms"]
        for name in document["order"]
        if arm["name"] in (metric := document["metrics"][name])["comparisons"]
    ]


def leading(document: Mapping[str, Any]) -> list[str]:
    """What people want to know first: the first sentences about each arm."""
    found = []
    for arm in document["arms"]:
        metrics = (document["metrics"][name]["comparisons"] for name in document["order"])
        sentences = [metric[arm["name"]]["verdict"] for metric in metrics if arm["name"] in metric]
        found += sentences[:LEADING]
    return found


def references_of(document: Mapping[str, Any]) -> list[str]:
    """Floors and rules, of the metrics that a report's summary shows."""
    rules = [arm["name"] for arm in document["arms"] if arm["role"] == "reference"]
    lines = []
    for metric in differences.compared():
        if not metric.is_card or metric.name not in document["metrics"]:
            continue
        values = {name: document["metrics"][metric.name]["arms"].get(name, {}).get("value") for name in rules}
        values |= {floor["label"]: floor["values"].get(metric.name) for floor in document["floors"].values()}
        lines += [
            verdicts.reference(metric.label, metric.unit, name, value)
            for name, value in values.items()
            if value is not None
        ]
    return lines


def compare(settings: CompareConfig) -> dict[str, Any]:
    """Writes a comparison and returns it.

    Raises:
        FileFormatError: an evaluation cannot be read.
        CompatibilityError: they are of other stores or other OD pairs.
        ConfigError: two have the same name, or are the same weights in one arm; none is the baseline; or another job
            writes to OUT.
    """
    with claims.directory(settings.out):
        claims.check(settings.out, "a comparison", claims.of("compare"))
        document = _compare(settings)
        config.save(settings, "compare", settings.out / "config.yaml")
        files.write_json(settings.out / COMPARISON, document)
    return document


def _compare(settings: CompareConfig) -> dict[str, Any]:
    evaluations = [read(path) for path in settings.evaluations]
    names, first = check_names(evaluations), evaluations[0]
    for other in evaluations[1:]:
        check_same(first, other)
    found = arms.group([Model.of_document(evaluation.document) for evaluation in evaluations])
    baseline = arms.choose_baseline(found, settings.baseline)
    found = arms.in_order(found, baseline)
    runs = {arm.name: [evaluations[names.index(name)] for name in arm.models] for arm in found}
    against = {
        arm.name: differences.between((baseline, arm), (runs[baseline.name], runs[arm.name]), settings)
        for arm in found
        if arm != baseline and arm.role != "reference"
    }
    document: dict[str, Any] = files.finite(
        {
            "format": FORMAT,
            "store": first.document["store"],
            "split": first.document["generated"]["split"],
            "baseline": baseline.name,
            "baseline_choice": arms.sentence(baseline),
            "steps_note": arms.steps_note(found),
            "coverage": _coverage(found, against),
            "arms": [arm.as_dict() for arm in found],
            "models": names,
            "evaluations": [str(path) for path in settings.evaluations],
            "pairs": len(first.pairs),
            "floors": floors_of(evaluations),
            "left_out": first.document.get("left_out", ""),
            "notes": _notes(found),
            "settings": settings.model_dump(mode="json"),
            "code_version": code_version(),
            "environment": provenance.environment(),
            "order": [metric.name for metric in differences.compared() if metric.name in first.document["metrics"]],
            "metrics": _metrics(first, runs, against, settings),
        }
    )
    return document


def _metrics(
    first: Evaluation,
    runs: Mapping[str, Sequence[Evaluation]],
    against: Mapping[str, Sequence[Difference]],
    settings: CompareConfig,
) -> dict[str, Any]:
    """Every metric: each arm's values, and its differences from the baseline."""
    values = {name: differences.described(found, settings) for name, found in runs.items()}
    return {
        metric: {
            **{key: words[key] for key in ("label", "unit", "better", "group")},
            "arms": {name: found[metric] for name, found in values.items() if metric in found},
            "comparisons": {
                name: difference.as_dict()
                for name, found in against.items()
                for difference in found
                if difference.metric == metric
            },
        }
        for metric, words in first.document["metrics"].items()
    }


def _coverage(found: Sequence[Arm], against: Mapping[str, Sequence[Difference]]) -> str:
    """What the verdicts on trips alone leave open, once for all of them."""
    claimed = [arm for arm in found if any(one.claims_trips_alone for one in against.get(arm.name, ()))]
    return verdicts.coverage({arm.name: (len(found[0].models), len(arm.models)) for arm in claimed})


def _notes(found: Sequence[Arm]) -> list[str]:
    """What the verdicts cover."""
    note = arms.steps_note(found)
    notes = [
        *([f"{note}."] if note else []),
        "An arm is all runs that differ in their seeds only; its values are means over them.",
        "Over seeds: exact permutation tests of runs, corrected for all metrics together (Westfall and Young); "
        "intervals of Student, or of Welch where the seeds are not the same.",
        "Over trips: intervals resample trips; p-values are corrected by Holm's method over the metrics of each arm. "
        "They cover the chance in the sample of trips, not that in training.",
    ]
    single = [arm.name for arm in found if arm.role != "reference" and len(arm.models) == 1]
    if single:
        notes.append(f"One run only: {', '.join(single)}. What another seed would have given is not known.")
    unknown = [arm.name for arm in found if arm.role == "unknown"]
    if unknown:
        notes.append(f"How these were trained is not known, so each is an arm of its own: {', '.join(unknown)}.")
    return notes


def code_version() -> str:
    """Digest of the source that decides what a comparison holds."""
    return provenance.source_digest(__name__)
