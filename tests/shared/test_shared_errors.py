"""The table between errors and statuses, against gRPC's own."""

from __future__ import annotations

import grpc
import pytest

from shared import errors
from shared.errors import ReportableError, TeacherError, UnexpectedStatus

KINDS = [kind for kind in TeacherError.__subclasses__() if kind is not UnexpectedStatus]

each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", TeacherError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_names_and_numbers_are_those_of_grpc(kind: type[TeacherError]) -> None:
    number, _ = grpc.StatusCode[kind.status].value
    assert kind.code == number


@each_kind
def test_an_error_survives_the_wire(kind: type[TeacherError]) -> None:
    for again in (errors.from_status(kind.status, "why"), errors.from_code(kind.code, "why")):
        assert type(again) is kind
        assert str(again) == "why"


def test_no_two_kinds_share_a_status() -> None:
    every = TeacherError.__subclasses__()
    assert len({kind.status for kind in every}) == len({kind.code for kind in every}) == len(every)


@pytest.mark.parametrize("status", grpc.StatusCode, ids=lambda status: status.name)
def test_every_status_is_an_error_and_strange_ones_are_not_retried(status: grpc.StatusCode) -> None:
    known = {kind.status: kind for kind in KINDS}
    number, _ = status.value
    by_name, by_number = errors.from_status(status.name, "why"), errors.from_code(number, "why")
    assert type(by_name) is type(by_number) is known.get(status.name, UnexpectedStatus)
    if status.name not in known:
        assert str(by_name) == f"{status.name}: why"
        assert str(by_number) == f"code {number}: why"
        assert not by_name.retryable


def test_what_may_succeed_later_is_retried() -> None:
    retried = {kind.__name__ for kind in TeacherError.__subclasses__() if kind.retryable}
    assert retried == {"Overloaded", "Unavailable", "DeadlineExceeded", "Cancelled", "Corrupted", "InternalError"}


def test_every_error_of_the_module_is_reportable() -> None:
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert all(issubclass(kind, ReportableError) for kind in kinds)
    assert {kind.__name__ for kind in kinds} >= {"ConfigError", "DataError", "FileFormatError", "TrainingError"}
