"""`answer`: every distinct question of a store's trips, with the teacher's answer to each, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TeacherStarter, write_tiny_teacher
from support.random_city import random_trips, write_random_store

from shared import answers_file, ragged
from shared.errors import Overloaded, Unauthenticated
from shared.store import Store, Trips
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.data.network import RoadNetwork
from teacher_server.__main__ import main
from teacher_server.offline import run as offline_run
from teacher_server.offline import teachers
from teacher_server.offline.config import AnswerConfig
from teacher_server.offline.questions import Roads, collect
from teacher_server.offline.teachers import opened, retried

Row = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""History, and the candidates of each scored position."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_random_store(tmp_path / "store", trips=40)


@pytest.fixture
def teacher(tmp_path: Path, store: Store) -> Path:
    path = tmp_path / "teacher"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    return path


def write_sampled(path: Path, store: Store, count: int = 30) -> Trips:
    trips = random_trips(RoadNetwork.load(store), count, seed=99)
    path.mkdir()
    for field in dataclasses.fields(trips):
        np.save(path / f"{field.name}.npy", getattr(trips, field.name))
    (path / "sampled.json").write_text("{}")
    return trips


def answer(store: Store, out: Path, *more: str) -> int:
    return main(["answer", "--data", str(store.path), "--out", str(out), *more])


def rows_by_hand(store: Store, trips: list[Trips], windows: tuple[int, ...], max_steps: int) -> set[Row]:
    """All rows of trips, step by step."""
    token = store.road_token.tolist()
    offsets, successors = store.network("successor_offsets"), store.network("successors")
    follow = [tuple(token[s] for s in successors[a:b]) for a, b in itertools.pairwise(offsets)]
    rows: set[Row] = set()
    for split in trips:
        for first, last in itertools.pairwise(split.offsets):
            roads = split.roads[first : last - 1].tolist()
            roads = roads[-max_steps:] if max_steps else roads
            cells, lists = [token[road] for road in roads], [follow[road] for road in roads]
            for window in windows:
                if not window:
                    rows.add((tuple(cells), tuple(lists)))
                    continue
                for step in range(len(roads)):
                    rows.add((tuple(cells[max(0, step + 1 - window) : step + 1]), (lists[step],)))
    return rows


def rows_of(path: Path) -> dict[Row, bytes]:
    """Rows of a file, and the bits of their answers."""
    header, answers = answers_file.read(path)
    list_at = ragged.offsets(answers.list_lengths)
    lists = [tuple(answers.list_tokens[a:b].tolist()) for a, b in itertools.pairwise(list_at)]
    found, token, choice, value = {}, 0, 0, 0
    for length in answers.history_lengths.tolist():
        scored = length if header.is_of_trips else 1
        of_row = tuple(lists[number] for number in answers.choices[choice : choice + scored])
        row = tuple(answers.history_tokens[token : token + length].tolist()), of_row
        count = sum(map(len, of_row))
        assert row not in found, "each row once"
        found[row] = answers.log_probs[value : value + count].tobytes()
        token, choice, value = token + length, choice + scored, value + count
    assert value == len(answers.log_probs)
    return found


@pytest.mark.parametrize(("windows", "max_steps"), [((4,), 0), ((1, 3, 20), 0), ((0,), 0), ((3,), 5), ((0,), 5)])
def test_questions_are_those_of_the_trips_each_once(store: Store, windows: tuple[int, ...], max_steps: int) -> None:
    trips = [store.trips("train"), store.trips("val")]
    asked = collect(Roads.of(store), trips, windows, max_steps)
    found = []
    for query in asked.queries(positions=7, candidates=20):
        tokens, candidates = query.history_tokens.tolist(), iter(query.candidate_tokens.tolist())
        lists = iter([tuple(next(candidates) for _ in range(length)) for length in query.candidate_lengths])
        for length in query.history_lengths.tolist():
            scored = length if query.mode is HistoryMode.SEQUENCE else 1
            found.append((tuple(tokens[:length]), tuple(next(lists) for _ in range(scored))))
            tokens = tokens[length:]
        assert len(query.history_lengths) == 1 or (query.positions <= 7 and len(query.candidate_tokens) <= 20)
    assert len(found) == len(set(found)) == len(asked.history_lengths)
    assert set(found) == rows_by_hand(store, trips, windows, max_steps)


def test_parts_of_many_trips_are_put_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    trips = [store.trips("train"), store.trips("val")]
    at_once = [collect(Roads.of(store), trips, windows, 0) for windows in ((2, 4), (0,))]
    monkeypatch.setattr("teacher_server.offline.questions.STEPS_AT_ONCE", 10)
    for whole, windows in zip(at_once, ((2, 4), (0,)), strict=True):
        cut = collect(Roads.of(store), trips, windows, 0)
        for name in ("history_lengths", "history_tokens", "choices"):
            np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))


def test_a_split_without_trips_asks_nothing(store: Store) -> None:
    none = store.trips("val").take(np.empty(0, np.int64))
    for windows in ((4,), (0,)):
        asked = collect(Roads.of(store), [none], windows, 0)
        assert asked.positions == 0
        assert not list(asked.queries(10, 10))


@pytest.mark.parametrize("windows", ["4", "2,5", "0"])
def test_answers_are_the_teachers(
    store: Store, teacher: Path, tmp_path: Path, windows: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row by row, each asked alone; trips that were sampled among them."""
    sampled = write_sampled(tmp_path / "sampled", store)
    out = tmp_path / "answers"
    assert answer(store, out, "--teacher", str(teacher), f"windows={windows}", f"sampled={tmp_path / 'sampled'}") == 0
    summary = json.loads(capsys.readouterr().out)
    found = rows_of(out)
    assert (summary["rows"], summary["bytes"]) == (len(found), out.stat().st_size)
    numbers = tuple(map(int, windows.split(",")))
    assert found.keys() == rows_by_hand(store, [store.trips("train"), store.trips("val"), sampled], numbers, 0)
    assert offline_run.SPLITS == ("train", "val"), "those whose trips are asked about"
    with opened(AnswerConfig(data=store.path, out=out, teacher=teacher)) as alone:
        for (history, lists), bits in list(found.items())[::17]:
            query = ScoreQuery(
                mode=HistoryMode.SEQUENCE if windows == "0" else HistoryMode.WINDOW,
                history_tokens=np.array(history, np.int32),
                history_lengths=np.array([len(history)], np.int32),
                candidate_tokens=np.array([cell for one in lists for cell in one], np.int32),
                candidate_lengths=np.array([len(one) for one in lists], np.int32),
            )
            assert alone.ask(query).tobytes() == bits
    header = answers_file.read_header(out)
    assert (header.revision, header.windows, header.store) == (alone.revision, numbers, store.fingerprint)
    assert header.sampled == (str(tmp_path / "sampled"),)


@pytest.mark.integration
@pytest.mark.parametrize("windows", ["4", "0"])
def test_a_daemon_gives_the_same_file(
    store: Store, teacher: Path, tmp_path: Path, running_teacher: TeacherStarter, windows: str
) -> None:
    """Though it takes little at a time."""
    assert answer(store, tmp_path / "ours", "--teacher", str(teacher), f"windows={windows}", "engine.device=cpu") == 0
    limits = ("batching.max_request_positions=12", "batching.max_request_candidates=64")
    with running_teacher(teacher, *limits) as server:
        assert answer(store, tmp_path / "theirs", "--address", server.address, f"windows={windows}") == 0
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code != 0
    said = capsys.readouterr()
    assert not said.out and "Traceback" not in said.err
    return said.err


def test_what_does_not_fit_is_refused(
    store: Store, teacher: Path, tmp_path: Path, tiny_teacher: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers"

    def said(*more: str) -> str:
        return refused(capsys, answer(store, out, *more))

    assert "do not share grid and vocabulary" in said("--teacher", str(tiny_teacher))
    assert "a window of 16 is longer than" in said("--teacher", str(teacher), "windows=16")
    assert "give either --teacher FILE or --address" in said()
    assert "a file of its own" in said("--teacher", str(teacher), "windows=0,4")
    assert "give at least one" in said("--teacher", str(teacher), "windows=[]")
    assert "no teacher file at" in said("--teacher", str(tmp_path / "nothing"))
    assert "has no sampled.json" in said("--teacher", str(teacher), f"sampled={tmp_path}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sampled.json").write_text("{}")
    assert "sample them again" in said("--teacher", str(teacher), f"sampled={tmp_path / 'broken'}")
    write_sampled(tmp_path / "sampled", store)
    roads = np.load(tmp_path / "sampled" / "roads.npy")
    roads[3] = 1000
    np.save(tmp_path / "sampled" / "roads.npy", roads)
    assert "has road 1000, but the store's are 0..29" in said(
        "--teacher", str(teacher), f"sampled={tmp_path / 'sampled'}"
    )
    assert not out.exists()
    out.write_text("mine")
    assert "exists; choose another --out or add overwrite=true" in said("--teacher", str(teacher))
    assert out.read_text() == "mine"
    assert answer(store, out, "--teacher", str(teacher), "overwrite=true") == 0
    assert rows_of(out)


def test_what_fails_leaves_the_old_file(
    store: Store, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "answers"
    assert answer(store, out, "--teacher", str(teacher)) == 0
    before = out.read_bytes()

    def interrupt(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("shared.answers_file.safetensors.numpy.save_file", interrupt)
    assert answer(store, out, "--teacher", str(teacher), "overwrite=true", "windows=2") == 130
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers", "store", "teacher"]


def test_what_a_server_cannot_take_now_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    now = [0.0]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(teachers.time, "sleep", sleep)
    monkeypatch.setattr(teachers.time, "monotonic", lambda: now[0])
    answers = iter([Overloaded("full"), Overloaded("full"), np.zeros(1, np.float16)])

    def ask() -> Any:
        found = next(answers)
        if isinstance(found, Exception):
            raise found
        return found

    assert len(retried(ask, 60)) == 1
    assert pauses == [0.1, 0.2]

    def never() -> Any:
        raise Overloaded("full")

    with pytest.raises(Overloaded):
        retried(never, 60)
    assert 55 < sum(pauses) < 61
    pauses.clear()

    def refuse() -> Any:
        raise Unauthenticated("who are you")

    with pytest.raises(Unauthenticated):
        retried(refuse, 60)
    assert not pauses
