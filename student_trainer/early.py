"""What commands refuse before their own imports, which take seconds: inputs that are not there, outputs that are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from shared import answers_file, claims
from shared.errors import DataError, FileFormatError
from shared.store import Store
from shared.training.launch import is_one_of_several
from student_trainer.runs.layout import EVALUATION, REPORT, check_unused

if TYPE_CHECKING:  # of these a command imports its own alone
    from student_trainer.compare.config import CompareConfig
    from student_trainer.convert.config import ConvertConfig
    from student_trainer.evaluate.config import EvaluateConfig
    from student_trainer.generate.config import GenerateConfig
    from student_trainer.headroom.config import HeadroomConfig
    from student_trainer.pipeline.config import PipelineConfig
    from student_trainer.predict.config import ExportConfig, PredictConfig
    from student_trainer.report.config import BundleConfig, ReportConfig
    from student_trainer.sample.config import SampleConfig
    from student_trainer.train.config import TrainConfig

    WithStudent = EvaluateConfig | ExportConfig | GenerateConfig | HeadroomConfig | PredictConfig


def check_convert(settings: ConvertConfig) -> None:
    """Raises `DataError` if there is no network, or there are no trips."""
    for flag, path in (("--roads", settings.roads), ("--trips", settings.trips)):
        if not path.is_file():
            raise DataError(f"{path} is no file; {flag} takes one")


def check_store(settings: PipelineConfig | SampleConfig | TrainConfig | WithStudent) -> None:
    """Raises `FileFormatError` if there is no store."""
    Store(settings.data)


def check_run(settings: TrainConfig) -> None:
    """Raises `ReportableError` if there is no store, the answers file is none, or, of a run that begins, settings have
    no effect or OUT is used; who uses it now is said later.

    Several ranks would each say so: they look when they have met, and say it once.
    """
    if is_one_of_several():
        return
    begins = not settings.resume and not settings.continue_to
    if begins:
        settings.check_effects()
    check_store(settings)
    answers_file.check_address(settings.teacher)
    if begins and claims.holder(settings.out) is None:
        check_unused(settings.out)


def check_student(settings: WithStudent) -> None:
    """Raises `FileFormatError` if there is no store, or the weights cannot be read."""
    check_store(settings)
    if isinstance(settings.weights, Path):
        try:
            settings.weights.open("rb").close()
        except OSError as error:
            raise FileFormatError(f"cannot read the weights {settings.weights}: {error.strerror}") from None


def check_evaluations(settings: CompareConfig | ReportConfig) -> None:
    """Raises `FileFormatError` if one of them is missing."""
    for folder in settings.evaluations:
        if folder.is_file():
            raise FileFormatError(f"{folder} is a file; give the directory that `student-trainer evaluate` wrote")
        if not (path := folder / EVALUATION).exists():
            raise FileFormatError(f"{path} does not exist; make it with `student-trainer evaluate`")


def check_report(settings: BundleConfig) -> None:
    """Raises `FileFormatError` if there is no report."""
    if not (settings.report / REPORT).is_file():
        raise FileFormatError(f"{settings.report} is no report; make one with `student-trainer report`")
