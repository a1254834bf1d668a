"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from shared import claims
from shared.errors import FileFormatError
from shared.store import Store
from student_trainer.runs.layout import RunFiles, check_unused
from student_trainer.train.launch import is_one_of_several


class ReadsStore(Protocol):
    """Settings of a job on a store."""

    @property
    def data(self) -> Path:
        """The store."""


class MakesRun(ReadsStore, Protocol):
    """Settings of a job that trains."""

    @property
    def out(self) -> Path:
        """The run's directory."""

    @property
    def resume(self) -> bool:
        """Whether it goes on with what is there."""


class ReadsWeights(ReadsStore, Protocol):
    """Settings of a job with a student, or none."""

    @property
    def weights(self) -> Path | str | None:
        """The file."""


class ReadsEvaluations(Protocol):
    """Settings of a job that reads what `evaluate` wrote."""

    @property
    def evaluations(self) -> Iterable[Path]:
        """The directories."""


class ReadsReport(Protocol):
    """Settings of a job that reads what `report` wrote."""

    @property
    def report(self) -> Path:
        """The directory."""


def check_store(settings: ReadsStore) -> None:
    """Raises `FileFormatError` if there is no store."""
    Store(settings.data)


def check_run(settings: MakesRun) -> None:
    """Raises `ReportableError` if there is no store, or OUT is used and not resumed; who uses it now is said later.

    Several ranks would each say so: they look when they have met, and say it once.
    """
    if is_one_of_several():
        return
    check_store(settings)
    if not settings.resume and claims.holder(settings.out) is None:
        check_unused(settings.out)


def check_student(settings: ReadsWeights) -> None:
    """Raises `FileFormatError` if there is no store, or the weights cannot be read."""
    check_store(settings)
    if settings.weights is None or settings.weights == "none":
        return
    _check_readable(Path(settings.weights))


def check_pupil(settings: ReadsWeights) -> None:
    """Raises `FileFormatError` if there is no store, or the weights, perhaps of a run's directory, cannot be read."""
    check_store(settings)
    path = Path(settings.weights or "")
    _check_readable(RunFiles(path).best if path.is_dir() else path)


def _check_readable(weights: Path) -> None:
    try:
        weights.open("rb").close()
    except OSError as error:
        raise FileFormatError(f"cannot read the weights {weights}: {error.strerror}") from None


def check_evaluations(settings: ReadsEvaluations) -> None:
    """Raises `FileFormatError` if one of them is missing."""
    for folder in settings.evaluations:
        if not (path := folder / "metrics.json").exists():
            raise FileFormatError(f"{path} does not exist; make it with `student-trainer evaluate`")


def check_report(settings: ReadsReport) -> None:
    """Raises `FileFormatError` if there is no report."""
    if not (settings.report / "report.html").is_file():
        raise FileFormatError(f"{settings.report} is no report; make one with `student-trainer report`")
