"""The Python API: light to import, the same as the commands, and documented with examples that run."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from support.random_city import write_random_store
from support.trained_runs import write_run

import student_trainer
from shared import cli
from shared.errors import CompatibilityError, ConfigError, DataError, InvalidRequest, Unavailable
from student_trainer import NextRoad, Store, Student, Teacher
from student_trainer.__main__ import JOBS
from student_trainer.generate.found import Found

PAGE = REPOSITORY / "docs" / "api.md"
SLOW = ("torch", "numba", "polars", "grpc", "scipy", "shared.store")


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What docs/api.md works with, and a teacher's file beside it."""
    folder = tmp_path_factory.mktemp("city")
    store = write_random_store(folder / "runs" / "store", trips=30)
    write_run(folder / "runs" / "distilled", store, seed=1)
    write_tiny_teacher(folder / "teacher.safetensors", tokeniser=store.tokeniser)
    return folder


@pytest.fixture(scope="module")
def student(city: Path) -> Student:
    return Student.load(city / "runs" / "distilled", city / "runs" / "store")


def test_importing_the_package_is_light() -> None:
    code = f"import sys, student_trainer; print(*({set(SLOW)!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "\n"


def test_what_is_public_is_there_and_nothing_else() -> None:
    assert set(student_trainer.__all__) == student_trainer._PUBLIC.keys()
    for name in student_trainer.__all__:
        assert getattr(student_trainer, name).__name__ == name
        assert name in PAGE.read_text(encoding="utf-8") or name in ("NextRoad", "TeacherScore")
    with pytest.raises(ImportError, match="cannot import name 'Pupil'"):
        from student_trainer import Pupil  # type: ignore[attr-defined]  # noqa: F401


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(student_trainer.importlib, "import_module", missing)
    with pytest.raises(ConfigError, match=r"this needs the extra \[trainer\]"):
        _ = student_trainer.Student


def questions_of(trips: Path) -> tuple[list[int], list[int], list[int], pl.DataFrame]:
    found = pl.read_parquet(trips / "trips.parquet").sort("pair")
    return found["origin"].to_list(), found["destination"].to_list(), found["departure"].to_list(), found


@pytest.mark.parametrize("method", ["greedy", "beam", "best_first", "shortest_path"])
def test_trips_are_those_of_the_command(method: str, city: Path, student: Student, tmp_path: Path) -> None:
    """Road by road, second by second, bit by bit; asked together, and some of them alone."""
    arguments = ["generate", "--data", city / "runs" / "store", "--out", tmp_path, f"method={method}", "pairs=0"]
    weights = city / "runs" / "distilled" / "checkpoints" / "best.pt"
    limits = {"max_steps": 40, "width": 3}
    given = [f"search.{name}={value}" for name, value in limits.items()]
    argv = [str(argument) for argument in [*arguments, "--weights", weights, *given, "threads=1"]]
    assert cli.main("student-trainer", "", JOBS, argv) == 0
    *asked, expected = questions_of(tmp_path)
    together = student.generate(*asked, method=method, search=limits, threads=2)  # type: ignore[call-overload]
    assert [trip.roads.tolist() for trip in together] == expected["roads"].to_list()
    assert [trip.times.tolist() for trip in together] == expected["times"].to_list()
    assert [trip.log_prob for trip in together] == expected["log_prob"].to_list()
    assert [trip.status for trip in together] == expected["status"].to_list()
    for row in (0, 3):
        alone = student.generate(*(part[row] for part in asked), method=method, search=limits)  # type: ignore[call-overload]
        assert isinstance(alone, Found)
        assert (alone.roads.tolist(), alone.log_prob) == (expected["roads"][row].to_list(), expected["log_prob"][row])


def test_no_trips_are_no_trips(student: Student) -> None:
    assert student.generate([], [], []) == []


def test_trips_that_cannot_be_are_refused(student: Student) -> None:
    with pytest.raises(DataError, match="road 30 is not in the network; roads are 0 to 29"):
        student.generate(0, 30, 0)
    with pytest.raises(DataError, match="2 origins, 1 destinations, 1 departures"):
        student.generate([0, 1], [2], [0])
    with pytest.raises(ConfigError, match=r"unknown setting search\.widht"):
        student.generate(0, 1, 0, search={"widht": 3})


@pytest.mark.integration
def test_the_pages_examples_run(
    city: Path, running_teacher: TeacherStarter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All Python of the page as one program, and its command before the part that reads the file it writes."""
    blocks = re.findall(r"^```(python)?\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["python"] * 7 + ["", "python"]
    *examples, command, alone = (body for _, body in blocks)
    assert not {"student_trainer", "shared"} & set(re.findall(r"\w+", alone))
    monkeypatch.chdir(city)
    with running_teacher(city / "teacher.safetensors") as server:
        program = "\n".join(examples).replace("127.0.0.1:50051", server.address)
        assert server.address in program
        (tmp_path / "examples.py").write_text(program)
        found = runpy.run_path(str(tmp_path / "examples.py"))
    assert found["answer"].probabilities.sum() == pytest.approx(1, abs=1e-12)
    assert [trip.pair for trip in found["trips"]] == [0, 1] and len(found["many"]) == 2
    assert cli.main("student-trainer", "", JOBS, command.split()[1:]) == 0
    (tmp_path / "alone.py").write_text(alone)
    assert runpy.run_path(str(tmp_path / "alone.py"))["probabilities"].shape[0] == 2


@pytest.mark.integration
def test_a_teacher_is_asked_about_one_history_or_many(
    city: Path, running_teacher: TeacherStarter, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(city / "runs" / "store")
    cells = store.tokeniser.vocabulary.size
    rng = np.random.default_rng(0)
    histories = [rng.integers(cells - 3, size=length).tolist() for length in (0, 1, 3, 7, 2)]
    candidates = [rng.choice(cells - 3, size=size, replace=False).tolist() for size in (3, 1, 5, 2, 4)]
    with running_teacher(city / "teacher.safetensors") as server, Teacher.connect(server.address, store) as teacher:
        together = teacher.score(histories, candidates)
        for history, row, one in zip(histories, candidates, together, strict=True):
            alone = teacher.score(history, row)
            assert (alone.log_probabilities == one.log_probabilities).all()
            assert len(one.probabilities) == len(row)
            assert one.probabilities.sum() == pytest.approx(1, abs=2e-3)  # float16 on the wire
        assert len({one.log_probabilities.tobytes() for one in together}) == 5
        assert len(teacher.score([], [])) == 0  # type: ignore[arg-type]
        assert teacher.score(np.array(histories[2]), np.array(candidates[2])).log_probabilities.shape == (5,)
        with pytest.raises(InvalidRequest, match="candidate_tokens"):
            teacher.score([], [cells])
        with pytest.raises(DataError, match="2 histories and 1 lists of candidates"):
            teacher.score([[1], [2]], [[1]])
        with pytest.raises(DataError, match="a history has no candidates"):
            teacher.score([[1]], [[]])
        with pytest.raises(DataError, match="cells are whole numbers"):
            teacher.score([[2**40]], [[1]])
    other = write_random_store(city / "other", seed=5)
    with running_teacher(city / "teacher.safetensors") as server, pytest.raises(CompatibilityError, match="store != "):
        Teacher.connect(server.address, other)


def test_addresses_that_cannot_be_are_refused_at_once() -> None:
    for address, message in {"http://host:1": "an address has no http://", "none": "expected HOST:PORT"}.items():
        with pytest.raises(ConfigError, match=f"address: {message}"):
            Teacher.connect(address)


def test_a_teacher_that_is_not_there_is_not_waited_for_longer_than_asked() -> None:
    with pytest.raises(Unavailable, match=r"no teacher at 127\.0\.0\.1:9 within 0\.2 s"):
        Teacher.connect("127.0.0.1:9", wait_seconds=0.2)


def test_an_answer_is_what_the_annotations_say(student: Student) -> None:
    answer = student.next_road([0], [1_704_715_200], 5)
    assert isinstance(answer, NextRoad) and answer.probabilities.dtype == np.float64
