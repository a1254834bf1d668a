"""A teacher in a file: the answers of another, or an error that says what to do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.fakes import scores_of
from support.random_city import write_random_store

from shared import answers_file
from shared.answers_file import Answers, AnswersHeader
from shared.errors import CompatibilityError, FileFormatError
from shared.store import Store
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.data.batch import build_batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.offline import FileTeacher, check_answers
from student_trainer.distill.query import build_query

TOKENS = 6


def header_of(city: Store, **changed: Any) -> AnswersHeader:
    header = AnswersHeader(
        revision="r1", tokeniser=city.tokeniser, windows=(4,), max_window=8, max_steps=0, store=city.fingerprint,
        sampled=(), compute_dtype="float32", device="cpu", made_by="test",
    )  # fmt: skip
    return dataclasses.replace(header, **changed)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def random_answers(rows: int, are_trips: bool, seed: int = 0) -> Answers:
    """Distinct rows of few cells, which begin and end alike."""
    rng = np.random.default_rng(seed)
    lists = [tuple(rng.integers(0, TOKENS, length).tolist()) for length in (0, 1, 1, 2, 3, 3)]
    found: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    while len(found) < rows:
        history = tuple(rng.integers(0, TOKENS, rng.integers(1, 5)).tolist())
        found.add((history, tuple(rng.integers(0, len(lists), len(history) if are_trips else 1).tolist())))
    histories, choices = zip(*sorted(found), strict=True)
    flat = np.concatenate([np.array(one, np.int32) for one in choices])
    lengths = np.array([len(one) for one in lists], np.int32)
    return Answers(
        history_lengths=np.array([len(history) for history in histories], np.int32),
        history_tokens=np.concatenate([np.array(history, np.int32) for history in histories]),
        choices=flat,
        list_lengths=lengths,
        list_tokens=np.array([cell for one in lists for cell in one], np.int32),
        log_probs=-rng.random(int(lengths[flat].sum())).astype(np.float16),
    )


def query_of(answers: Answers, rows: np.ndarray, are_trips: bool) -> tuple[ScoreQuery, np.ndarray]:
    """Some rows of a file as a query, and their answers, one after the other."""
    lists = np.split(answers.list_tokens, np.cumsum(answers.list_lengths)[:-1])
    histories = np.split(answers.history_tokens, np.cumsum(answers.history_lengths)[:-1])
    scored = answers.history_lengths if are_trips else np.ones(len(answers), np.int64)
    choices = np.split(answers.choices, np.cumsum(scored)[:-1])
    counts = [int(answers.list_lengths[of_row].sum()) for of_row in choices]
    values = np.split(answers.log_probs, np.cumsum(counts)[:-1])
    asked = np.concatenate([choices[row] for row in rows])
    query = ScoreQuery(
        mode=HistoryMode.SEQUENCE if are_trips else HistoryMode.WINDOW,
        history_tokens=np.concatenate([histories[row] for row in rows]),
        history_lengths=answers.history_lengths[rows],
        candidate_tokens=np.concatenate([lists[choice] for choice in asked]),
        candidate_lengths=answers.list_lengths[asked],
    )
    return query, np.concatenate([values[row] for row in rows])


@pytest.mark.parametrize("are_trips", [False, True], ids=["windows", "trips"])
def test_every_row_has_its_answer_and_no_other(tmp_path: Path, are_trips: bool) -> None:
    answers = random_answers(1200, are_trips)
    tokeniser = Tokeniser(Vocabulary.full(TOKENS), None)
    header = AnswersHeader("r1", tokeniser, (0,) if are_trips else (2, 4), 8, 0, "s", (), "float32", "cpu", "test")
    answers_file.write(tmp_path / "all", header, answers)
    teacher = FileTeacher(tmp_path / "all")
    rows = np.random.default_rng(1).integers(0, len(answers), 3000)
    query, expected = query_of(answers, rows, are_trips)
    reply = teacher.submit(query).result()
    assert reply.log_probs.tobytes() == expected.tobytes()
    assert (reply.weights_revision, teacher.revision, reply.candidate_mass) == ("r1", "r1", None)
    others = np.arange(1, len(answers), 2)
    kept, values = query_of(answers, others - 1, are_trips)
    half = dataclasses.replace(
        answers,
        history_lengths=kept.history_lengths,
        history_tokens=kept.history_tokens,
        choices=np.concatenate(np.split(answers.choices, np.cumsum(
            answers.history_lengths if are_trips else np.ones(len(answers), np.int64))[:-1])[::2]),
        log_probs=values,
    )  # fmt: skip
    answers_file.write(tmp_path / "half", header, half)
    teacher = FileTeacher(tmp_path / "half")
    assert teacher.submit(kept).result().log_probs.tobytes() == values.tobytes()
    for row in others:
        with pytest.raises(CompatibilityError, match="lack a position"):
            teacher.submit(query_of(answers, np.array([0, row]), are_trips)[0]).result()


def file_of(store: Store, path: Path, distill: DistillConfig, header: AnswersHeader) -> Path:
    """The answers of `scores_of` to the windows of all training trips."""
    network, trips = RoadNetwork.load(store), store.trips("train")
    windows = distill.model_copy(update={"history": "window"})
    query = build_query(build_batch(network, trips, np.arange(len(trips))), network, windows)
    histories = np.split(query.history_tokens, np.cumsum(query.history_lengths)[:-1])
    lists = np.split(query.candidate_tokens, np.cumsum(query.candidate_lengths)[:-1])
    values = np.split(scores_of(query), np.cumsum(query.candidate_lengths)[:-1])
    rows = {(h.tobytes(), c.tobytes()): (h, c, v) for h, c, v in zip(histories, lists, values, strict=True)}
    distinct = list(rows.values())
    answers_file.write(
        path,
        header,
        Answers(
            history_lengths=np.array([len(history) for history, _, _ in distinct], np.int32),
            history_tokens=np.concatenate([history for history, _, _ in distinct]),
            choices=np.arange(len(distinct), dtype=np.int32),
            list_lengths=np.array([len(one) for _, one, _ in distinct], np.int32),
            list_tokens=np.concatenate([one for _, one, _ in distinct]),
            log_probs=np.concatenate([value for _, _, value in distinct]).astype(np.float16),
        ),
    )
    return path


@pytest.mark.parametrize("history", ["sequence", "window"])
def test_batches_are_answered_however_their_history_is_sent(store: Store, tmp_path: Path, history: Any) -> None:
    distill = DistillConfig(window=3, history=history)
    teacher = FileTeacher(file_of(store, tmp_path / "answers", distill, header_of(store, windows=(3,))))
    network, trips = RoadNetwork.load(store), store.trips("train")
    windows = distill.model_copy(update={"history": "window"})
    for index in np.array_split(np.random.default_rng(0).permutation(len(trips)), 7):
        batch = build_batch(network, trips, index)
        expected = scores_of(build_query(batch, network, windows))
        reply = teacher.submit(build_query(batch, network, distill)).result()
        assert reply.log_probs.tobytes() == expected.astype(np.float16).tobytes()


def test_what_the_file_lacks_is_said_with_what_to_do(store: Store, tmp_path: Path) -> None:
    distill = DistillConfig(window=4)
    path = file_of(store, tmp_path / "answers", distill, header_of(store, sampled=("far/away",)))
    teacher, network = FileTeacher(path), RoadNetwork.load(store)
    trips = store.trips("test")
    query = build_query(build_batch(network, trips, np.arange(len(trips))), network, distill)
    message = (
        r"the answers in .*answers lack a position: history [\d ]+ \(\d cells\), \d candidates. They are those of the "
        r"training and validation trips of store random city.* and of the sampled trips in far/away, window 4, .*"
        r"write them again with `teacher-server answer` and sampled=DIR; otherwise use the same trips"
    )
    with pytest.raises(CompatibilityError, match=message):
        teacher.submit(query).result()
    with pytest.raises(CompatibilityError, match="no candidate_mass"):
        teacher.submit(dataclasses.replace(query, include_candidate_mass=True)).result()


def test_answers_to_other_questions_are_refused_at_the_start(store: Store) -> None:
    path = Path("answers")

    def check(header: AnswersHeader, top_k: int = 64, max_steps: int = 0, window: int = 4) -> None:
        check_answers(header, store, DistillConfig(window=window), top_k, max_steps, path)

    header = header_of(store)
    check(header)
    check(header, top_k=0)
    check(header, top_k=5)  # the most that a road of the city has
    check(header_of(store, windows=(2, 4)), window=2)
    refusals: list[tuple[str, Any]] = [
        (r"candidate_top_k 4 would leave out candidates.*set it to 0, or to 5 or more", lambda: check(header, top_k=4)),
        (r"batch.max_steps is 7, theirs 0", lambda: check(header, max_steps=7)),
        (r"distill.window is 3, theirs 2, 4", lambda: check(header_of(store, windows=(2, 4)), window=3)),
        (r"distill.window is 0, theirs 4", lambda: check(header, window=0)),
        (r"made for store other, this is random city", lambda: check(header_of(store, store="other"))),
        (r"made for store other.*; distill.window is 3", lambda: check(header_of(store, store="other"), window=3)),
        (
            r"the teacher of the answers in answers do not share grid and vocabulary .*vocabulary.cells: \d+ != 9",
            lambda: check(header_of(store, tokeniser=Tokeniser(Vocabulary.full(9), store.tokeniser.grid))),
        ),
    ]
    for message, refused in refusals:
        with pytest.raises(CompatibilityError, match=message):
            refused()


def test_a_damaged_file_is_refused(store: Store, tmp_path: Path) -> None:
    path = file_of(store, tmp_path / "answers", DistillConfig(), header_of(store))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match="checksum differs"):
        FileTeacher(path)
