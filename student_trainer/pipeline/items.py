"""What there is to do, what each item depends on, and how finished work is recognised.

An item is done if its record holds the fingerprint that it would have now: a digest of its phase's source, its settings
without places, and the fingerprints of what it reads. Names of files and directories decide nothing.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from shared import files, provenance
from shared.config import Section
from shared.store import Store
from student_trainer.compare import run as compare
from student_trainer.compare.config import CompareConfig
from student_trainer.evaluate import run as evaluation
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.generate import run as generation
from student_trainer.generate.config import GenerateConfig
from student_trainer.pipeline.config import Phase, PipelineConfig
from student_trainer.pipeline.models import Model
from student_trainer.report import run as reporting
from student_trainer.report.config import ReportConfig
from student_trainer.runs.layout import COMPARISON, EVALUATION, REPORT, RunFiles

PLACES = {
    *("data", "trips", "out", "weights", "evaluations", "comparison", "runs", "replace", "name"),
    *("threads", "predictions"),
}
"""Settings that say where and how fast, not what: the fingerprints of what is there stand for places."""


@dataclasses.dataclass(frozen=True)
class Item:
    """Something to do once.

    Attributes:
        name: unique, and its place below OUT.
        settings: of the job.
        result: a file that is there when it is done.
        needs: items that must be done before.
        fingerprint: of all that decides its result.
        run: does it.
    """

    name: str
    phase: Phase
    settings: Section
    result: Path
    needs: tuple[Item, ...]
    fingerprint: str
    run: Callable[[], object]

    def record(self, out: Path) -> Path:
        """The file that says that it is done."""
        return out / "state" / f"{self.name.replace('/', '--')}.json"

    def is_done(self, out: Path) -> bool:
        """Whether its result is there, and of what it would be made from now."""
        try:
            known = json.loads(self.record(out).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return isinstance(known, dict) and known.get("fingerprint") == self.fingerprint and self.result.exists()

    def mark_done(self, out: Path) -> None:
        """Remembers it."""
        files.write_json(self.record(out), {"fingerprint": self.fingerprint, "phase": self.phase, "name": self.name})


@dataclasses.dataclass(frozen=True)
class Place:
    """One split and seed of OD pairs.

    Attributes:
        trips, evaluations: an item a model.
    """

    name: str
    settings: PipelineConfig
    models: Sequence[Model]
    trips: Sequence[Item]
    evaluations: Sequence[Item]

    @property
    def items(self) -> list[Item]:
        """What each model needs, in order."""
        return [*self.trips, *self.evaluations]

    def together(self, evaluations: Sequence[Item]) -> list[Item]:
        """The comparison and the report of some of the evaluations: those that there are."""
        chosen = [(m, e) for m, e in zip(self.models, self.evaluations, strict=True) if e in evaluations]
        models, measured = [model for model, _ in chosen], [item for _, item in chosen]
        compared = [_compare(self.settings, measured, self.name)] if len(measured) > 1 else []
        return [*compared, _report(self.settings, models, measured, compared, self.name)]


def plan(settings: PipelineConfig, models: Sequence[Model], store: Store) -> list[Place]:
    """Every split and seed."""
    places: list[Place] = []
    for split in settings.splits:
        for seed in settings.seeds:
            name = f"{split}-seed{seed}"
            made = [_generate(settings, model, store, split, seed, name) for model in models]
            measured = [_evaluate(settings, model, item, name) for model, item in zip(models, made, strict=True)]
            places.append(Place(name, settings, models, made, measured))
    return places


def _generate(settings: PipelineConfig, model: Model, store: Store, split: Any, seed: int, place: str) -> Item:
    name = f"{place}/trips/{model.name}"
    job = GenerateConfig(
        data=settings.data,
        weights="none" if model.weights is None else str(model.weights),
        out=settings.out / name,
        method="shortest_path" if model.weights is None else settings.method,
        name=model.name,
        split=split,
        pairs=settings.pairs,
        seed=seed,
        search=settings.search,
        candidate_top_k=settings.candidate_top_k,
        device=settings.search_device,
        threads=settings.threads,
        replace=True,
    )
    made_of = [generation.code_version(), store.fingerprint, model.sha256]
    return _item(name, "generate", job, "trips.parquet", (), made_of, lambda: generation.generate(job))


def _evaluate(settings: PipelineConfig, model: Model, trips: Item, place: str) -> Item:
    name = f"{place}/evaluations/{model.name}"
    job = EvaluateConfig(
        data=settings.data,
        trips=settings.out / trips.name,
        out=settings.out / name,
        weights=model.weights if settings.next_road else None,
        name=model.name,
        bootstrap=settings.bootstrap,
        candidate_top_k=settings.candidate_top_k,
        threads=settings.threads,
        predictions=settings.out / "predictions",
    )
    known = None if model.training is None else model.training.as_dict()
    made_of = [evaluation.code_version(), model.name, model.sha256 if settings.next_road else "", json.dumps(known)]
    return _item(name, "evaluate", job, EVALUATION, (trips,), made_of, lambda: evaluation.evaluate(job))


def _compare(settings: PipelineConfig, evaluations: Sequence[Item], place: str) -> Item:
    name = f"{place}/comparison"
    job = CompareConfig(
        evaluations=tuple(settings.out / item.name for item in evaluations),
        out=settings.out / name,
        baseline=settings.baseline,
        bootstrap=settings.bootstrap,
        significance=settings.significance,
    )
    return _item(
        name, "compare", job, COMPARISON, tuple(evaluations), [compare.code_version()],
        lambda: compare.compare(job),
    )  # fmt: skip


def _report(
    settings: PipelineConfig, models: Sequence[Model], evaluations: Sequence[Item], compared: Sequence[Item], place: str
) -> Item:
    name = f"{place}/report"
    runs = tuple(model.run for model in models if model.run is not None and RunFiles(model.run).metrics.exists())
    job = ReportConfig(
        data=settings.data,
        evaluations=tuple(settings.out / item.name for item in evaluations),
        comparison=settings.out / compared[0].name if compared else None,
        runs=runs,
        out=settings.out / name,
        title=f"Generated trips: {place.replace('-seed', ' split, seed ')}",
        map_pairs=settings.map_pairs,
    )
    source = provenance.source_digest("student_trainer.report.run", assets="student_trainer.report.assets")
    made_of = [source, *(files.file_digest(RunFiles(run).metrics) for run in runs)]
    needs = (*evaluations, *compared)
    return _item(name, "report", job, REPORT, needs, made_of, lambda: reporting.write(job))


def _item(
    name: str,
    phase: Phase,
    job: Any,
    result: str,
    needs: tuple[Item, ...],
    made_of: Sequence[str],
    run: Callable[[], object],
) -> Item:
    values = job.model_dump(mode="json", exclude=PLACES)
    fingerprint = files.digest(
        json.dumps([phase, values, list(made_of), [need.fingerprint for need in needs]], sort_keys=True)
    )
    return Item(name, phase, job, job.out / result, needs, fingerprint, run)
