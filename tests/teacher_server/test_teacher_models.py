"""A second teacher, known by the name in its file alone: served to a trainer, asked by `answer`, told by `info`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import start_teacher, write_tiny_teacher
from support import markov_teacher
from support.random_city import write_random_store
from support.row_fakes import contexts_of

from shared import answers_file, cli, ragged, teacher_file
from shared.errors import FileFormatError
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.__main__ import JOBS as STUDENT
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig
from teacher_server import teachers
from teacher_server.__main__ import main
from teacher_server.lmtad import model as lmtad


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_random_store(tmp_path / "store", trips=20)


@pytest.fixture
def teacher(store: Store, tmp_path: Path) -> Path:
    path = tmp_path / "markov.safetensors"
    markov_teacher.write_markov_teacher(path, store.tokeniser)
    return path


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(teachers.TEACHERS, markov_teacher.NAME, markov_teacher.load)


def expected(teacher: Path, query: ScoreQuery) -> np.ndarray:
    """The table's answer to a query, position by position."""
    table = teacher_file.read(teacher)[1]["table"].astype(np.float64)
    parts = np.split(query.candidate_tokens, ragged.offsets(query.candidate_lengths)[1:-1])
    contexts = contexts_of(query, markov_teacher.BLOCK_SIZE - 1)
    last = [context[-1] if len(context) else query_sot(teacher) for context in contexts]
    found = [markov_teacher.answer_of(table, token, part) for token, part in zip(last, parts, strict=True)]
    return np.concatenate(found).astype(np.float16)


def query_sot(teacher: Path) -> int:
    return teacher_file.read_header(teacher).tokeniser.vocabulary.sot


@pytest.mark.integration
def test_the_daemon_serves_it_and_a_student_learns_from_it(store: Store, teacher: Path, tmp_path: Path) -> None:
    query = ScoreQuery(
        mode=HistoryMode.WINDOW,
        window=0,
        history_tokens=np.array([1, 2, 3, 0], np.int32),
        history_lengths=np.array([3, 1]),
        candidate_tokens=np.array([0, 2, 1, 3], np.int32),
        candidate_lengths=np.array([3, 1]),
        include_candidate_mass=False,
    )
    with start_teacher(teacher, module="support.markov_teacher") as server:
        client = GrpcTeacher(server.address, ClientConfig())
        reply = client.submit(query).result()
        client.close()
        np.testing.assert_array_equal(reply.log_probs, expected(teacher, query))
        assert reply.weights_revision == server.ready["weights_revision"] == teacher_file.read_header(teacher).revision
        assert main(["info", "--address", server.address]) == 0
        line = f"train --data {store.path} --teacher {server.address} --out {tmp_path / 'run'} optim.epochs=1"
        small = "model.road_id_dim=8 model.road_attr_dim=2 optim.batch_size=8 runtime.threads=1 log.tensorboard=false"
        assert cli.main("student-trainer", "", STUDENT, [*line.split(), *small.split(), "runtime.device=cpu"]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["teacher_revision"] == teacher_file.read_header(teacher).revision and summary["best"]["kl"] > 0


def test_its_answers_are_written(known: None, store: Store, teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers"
    assert main(["answer", "--data", str(store.path), "--out", str(out), "--teacher", str(teacher)]) == 0
    header, answers = answers_file.read(out)
    assert header.revision == teacher_file.read_header(teacher).revision and header.device == "cpu"
    lists = np.split(answers.list_tokens, ragged.offsets(answers.list_lengths)[1:-1])
    last = answers.history_tokens[np.cumsum(answers.history_lengths) - 1]
    table = teacher_file.read(teacher)[1]["table"].astype(np.float64)
    rows = zip(last, answers.choices, strict=True)
    wanted = np.concatenate([markov_teacher.answer_of(table, token, lists[choice]) for token, choice in rows])
    np.testing.assert_array_equal(answers.log_probs, wanted.astype(np.float16))


def test_info_tells_the_model_of_a_file(
    store: Store, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_teacher(tmp_path / "lmtad", tokeniser=store.tokeniser)
    found = []
    for path in (teacher, tmp_path / "lmtad"):
        assert main(["info", "--teacher", str(path)]) == 0
        found.append(json.loads(capsys.readouterr().out)["model"])
    assert found == ["markov", "lmtad"]


@pytest.mark.parametrize("job", ["serve", "answer"])
def test_a_model_that_is_not_known_is_refused_and_the_known_are_named(
    store: Store, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], job: str
) -> None:
    line = [job, "--teacher", str(teacher)]
    line += ["--data", str(store.path), "--out", str(tmp_path / "a")] if job == "answer" else []
    assert main(line) == 2
    said = f"{teacher} holds a teacher of the model 'markov', which is not known here: lmtad"
    assert said in capsys.readouterr().err


def test_jobs_that_make_an_lmtad_take_no_other(
    store: Store, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint", str(teacher), "--out", str(tmp_path / "out")]) == 2
    assert str(teacher) in capsys.readouterr().err
    assert main(["pretrain", "--data", str(store.path), "--out", str(teacher)]) == 2
    assert f"{teacher} exists; choose another --out" in capsys.readouterr().err
    with pytest.raises(FileFormatError, match="holds a markov, no LM-TAD"):
        lmtad.load(*teacher_file.read(teacher))
