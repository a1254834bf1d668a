"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from shared import answers_file, claims
from shared.address import answers_path
from shared.errors import DataError, FileFormatError
from shared.launch import is_one_of_several
from shared.store import Store
from student_trainer.runs.layout import BEST, RunFiles, check_unused


class ReadsStore(Protocol):
    """Settings of a job on a store."""

    @property
    def data(self) -> Path:
        """The store."""


class AsksTeacher(Protocol):
    """Settings of a job that asks a teacher, or none."""

    @property
    def teacher(self) -> str:
        """Where it is."""


class MakesRun(ReadsStore, AsksTeacher, Protocol):
    """Settings of a job that trains."""

    @property
    def out(self) -> Path:
        """The run's directory."""

    @property
    def resume(self) -> bool:
        """Whether it goes on with what is there."""

    @property
    def continue_to(self) -> int:
        """Whether it does so, to how many epochs; 0 if not."""


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


class ReadsNetwork(Protocol):
    """Settings of a job that converts."""

    @property
    def roads(self) -> Path:
        """The network."""

    @property
    def trips(self) -> Path:
        """The trips."""


def check_convert(settings: ReadsNetwork) -> None:
    """Raises `DataError` if there is no network, or there are no trips."""
    for flag, path in (("--roads", settings.roads), ("--trips", settings.trips)):
        if not path.is_file():
            raise DataError(f"{path} is no file; {flag} takes one")


def check_store(settings: ReadsStore) -> None:
    """Raises `FileFormatError` if there is no store."""
    Store(settings.data)


def check_answers(settings: AsksTeacher) -> None:
    """Raises `FileFormatError` if the teacher is an answers file that is not there, or is none."""
    path = answers_path(settings.teacher)
    if path is not None:
        answers_file.read_header(path)


def check_run(settings: MakesRun) -> None:
    """Raises `ReportableError` if there is no store, the answers file is none, or OUT is used and not resumed; who uses
    it now is said later.

    Several ranks would each say so: they look when they have met, and say it once.
    """
    if is_one_of_several():
        return
    check_store(settings)
    check_answers(settings)
    if not settings.resume and not settings.continue_to and claims.holder(settings.out) is None:
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
        best = Path(weights, BEST)
        advice = f"; did you mean {best}?" if best.is_file() else ""
        raise FileFormatError(f"cannot read the weights {weights}: {error.strerror}{advice}") from None


def check_evaluations(settings: ReadsEvaluations) -> None:
    """Raises `FileFormatError` if one of them is missing."""
    for folder in settings.evaluations:
        if not (path := folder / "metrics.json").exists():
            raise FileFormatError(f"{path} does not exist; make it with `student-trainer evaluate`")


def check_report(settings: ReadsReport) -> None:
    """Raises `FileFormatError` if there is no report."""
    if not (settings.report / "report.html").is_file():
        raise FileFormatError(f"{settings.report} is no report; make one with `student-trainer report`")
