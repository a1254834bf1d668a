"""A student as one file: run without this project it says what `next_road` says."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, reference_path
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips, write_random_store
from support.students import SCALE, random_model
from support.trained_runs import write_run

from shared import cli
from shared.store import Store
from student_trainer.__main__ import JOBS
from student_trainer.predict.export import portable, trace
from student_trainer.predict.portable import NO_ROAD
from student_trainer.predict.predictor import Predictor
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import run as prepare

PROBABILITY, SECONDS = 1e-5, 1e-4
"""Tolerances that docs/api.md states; of seconds relative."""
ALONE = """
import json, sys
class Refused:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("student_trainer", "teacher_server", "shared", "numba", "torch_geometric"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import torch
found = {"student.json": ""}
student = torch.export.load(sys.argv[1], extra_files=found).module()
asked = [torch.tensor(values) for values in json.loads(sys.argv[2])]
with torch.inference_mode():
    answers = [values.tolist() for values in student(*asked)]
print(json.dumps([json.loads(found["student.json"]), *answers]))
"""
Question = tuple[list[int], list[int], int]


def padded(questions: list[Question]) -> list[list[Any]]:
    """Roads, times, length and destination of trips under way, as the file takes them."""
    width = max(len(roads) for roads, _, _ in questions)
    rows = [[[*row, *[0] * (width - len(row))] for row in part] for part in list(zip(*questions, strict=True))[:2]]
    return [*rows, [len(roads) for roads, _, _ in questions], [destination for _, _, destination in questions]]


def compare(student: Predictor, questions: list[Question], answers: list[Any]) -> None:
    roads, probabilities, seconds = map(np.array, answers)
    expected = student.next_road(*map(list, zip(*questions, strict=True)))  # type: ignore[arg-type]
    for row, one in enumerate(expected):
        kept = roads[row] != NO_ROAD
        np.testing.assert_array_equal(roads[row][kept], one.roads)
        np.testing.assert_allclose(probabilities[row][kept], one.probabilities, rtol=0, atol=PROBABILITY)
        np.testing.assert_allclose(seconds[row][kept], one.seconds, rtol=SECONDS)
        assert (probabilities[row][~kept] == 0).all() and (seconds[row][~kept] == 0).all()


def drawn(trips: Any, rng: np.random.Generator, count: int) -> list[Question]:
    """Trips under way, cut anywhere."""
    found = []
    for trip in rng.integers(len(trips), size=count):
        first, end = int(trips.offsets[trip]), int(trips.offsets[trip + 1])
        known = slice(first, first + int(rng.integers(1, end - first)))
        found.append((trips.roads[known].tolist(), trips.times[known].tolist(), int(trips.roads[end - 1])))
    return found


NETWORK, _ = random_network(40, seed=3)
TRIPS = random_trips(NETWORK, 60, seed=3, longest=30)


@functools.cache
def predictor(top_k: int) -> Predictor:
    store: Any = None
    return Predictor(random_model(NETWORK, temporal="time_emb"), store, NETWORK, SCALE, candidate_top_k=top_k)


@functools.cache
def graph(top_k: int) -> Any:
    return trace(portable(predictor(top_k))).module()


def compare_graph(top_k: int, questions: list[Question]) -> None:
    answers = graph(top_k)(*map(torch.tensor, padded(questions)))
    compare(predictor(top_k), questions, [values.tolist() for values in answers])


@settings(max_examples=30)
@given(st.sampled_from([0, 2]), st.integers(0, 10_000), st.integers(1, 20))
def test_the_graph_says_what_the_predictor_says(top_k: int, seed: int, count: int) -> None:
    compare_graph(top_k, drawn(TRIPS, np.random.default_rng(seed), count))


@pytest.mark.parametrize("day", range(14))
def test_days_and_seconds_are_read_as_in_training(day: int) -> None:
    """Weekends count by the trip's first entry, midnight included; before 1970, too."""
    for start in (1_704_585_600, -86_400 * 300):
        time = start + day * 86_400 - 30
        compare_graph(0, [([0, 1, 2], [time, time + 29, time + 90], 5)])


def export(store: Path, weights: Path, out: Path) -> int:
    arguments = ["export", "--data", str(store), "--weights", str(weights), "--out", str(out)]
    return cli.main("student-trainer", "", JOBS, arguments)


def run_alone(path: Path, questions: list[Question]) -> list[Any]:
    """Description and answers from a process that cannot import this project."""
    command = [sys.executable, "-P", "-c", ALONE, str(path), json.dumps(padded(questions))]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=path.parent)
    return list(json.loads(done.stdout))


@pytest.mark.integration
def test_the_file_runs_without_this_project(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = write_random_store(tmp_path / "store", trips=30)
    weights = write_run(tmp_path / "run", store, seed=1)
    assert export(store.path, weights, tmp_path / "student.pt2") == 0
    said = json.loads(capsys.readouterr().out)
    questions = drawn(store.trips("val"), np.random.default_rng(0), 9)
    description, *answers = run_alone(tmp_path / "student.pt2", questions)
    student = Predictor.load(weights, store)
    compare(student, questions, answers)
    assert description.items() <= said.items()
    assert (description["roads"], description["store"]) == (30, store.fingerprint)
    assert said["bytes"] == (tmp_path / "student.pt2").stat().st_size
    compare(student, questions[:1], run_alone(tmp_path / "student.pt2", questions[:1])[1:])


@pytest.mark.integration
def test_public_weights_run_without_this_project(tmp_path: Path) -> None:
    """On a city with dead ends and many degrees, of the width that public HOSER has."""
    prepare(PrepareConfig(raw=reference_path("hoser", "city"), out=tmp_path / "store"))
    weights = reference_path("hoser", "hoser_freqs.pth")
    assert export(tmp_path / "store", weights, tmp_path / "student.pt2") == 0
    questions = drawn(Store.open(tmp_path / "store").trips("test"), np.random.default_rng(0), 40)
    compare(Predictor.load(weights, tmp_path / "store"), questions, run_alone(tmp_path / "student.pt2", questions)[1:])


def test_another_suffix_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(tmp_path, tmp_path / "w", tmp_path / "student.onnx") == 2
    assert "out: must end in .pt2" in capsys.readouterr().err


def test_the_repository_is_not_what_the_file_is_run_with() -> None:
    """The refusal in `ALONE` works."""
    code = ALONE.replace("import torch\n", "import shared\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert "ImportError: shared" in done.stderr
