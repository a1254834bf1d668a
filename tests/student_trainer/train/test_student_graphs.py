"""Whole steps as recordings, with a recorder that needs no CUDA: the same run, and what happens where it cannot be."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.fake_cuda import CUDA
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.recipes import HISTORY, variants
from support.recorders import Repeating, record_steps

from shared.errors import ConfigError, TrainingError, Unavailable
from shared.store import Store
from shared.training.torch_ranks import Ranks
from student_trainer.data.batch import Batch
from student_trainer.data.packing import Packed
from student_trainer.distill import loss as terms
from student_trainer.distill.kl import TeacherTarget
from student_trainer.distill.loss import Comparison, Term
from student_trainer.model import device as devices
from student_trainer.model import hoser_parts
from student_trainer.model.history_head import HistoryHead
from student_trainer.model.hoser import HOSER
from student_trainer.train import cuda_graphs, feed, trainer
from student_trainer.train import session as sessions
from student_trainer.train.config import RuntimeConfig, TrainConfig
from student_trainer.train.objective import Divisors
from student_trainer.train.optim import distill_share, learning_rate
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import Step, prepare_step
from student_trainer.train.session import Session

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 8},
    "log": {"tensorboard": False, "progress": False},
    "runtime": {"device": "cpu"},
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def start(store: Store, out: Path, teacher: str = "127.0.0.1:1", **changed: Any) -> Session:
    settings = TrainConfig.model_validate({"data": store.path, "out": out, "teacher": teacher, **SMALL, **changed})
    return Session(settings, store, Runtime.of(settings.runtime, CPU), FakeTeacher())


def steps_of(session: Session, count: int) -> list[Step]:
    plan = itertools.islice(session.schedule.from_step(0), count)
    return [prepare_step(session.feed, session.model.graph, planned) for planned in plan]


def make(session: Session, count: int) -> dict[str, float]:
    for step in steps_of(session, count):
        session.trainer.train_step(step)
    return {k: v for k, v in session.trainer.take_metrics(1.0).items() if k.startswith("train/")}


def state_of(session: Session) -> dict[str, torch.Tensor]:
    moments = session.trainer.optimizer.state_dict()["state"]
    found = {f"{number}/{name}": value for number, of in moments.items() for name, value in of.items()}
    return {name: tensor.clone() for name, tensor in (session.trainer.learned | found).items()}


def wide(batch: Batch) -> Batch:
    return batch.map(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions whose model, batches and losses are in float64, so that AdamW does not magnify rounding.

    The learning rate and the share of the weight are ones that float32 holds, in which a device reads them.
    """
    narrow, unpack, of, softmax = torch.Tensor.float, Packed.unpack, TeacherTarget.of, terms.masked_log_softmax
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else narrow(t))
    monkeypatch.setattr(hoser_parts, "HOSER", lambda *arguments: HOSER(*arguments).double())
    monkeypatch.setattr(sessions, "HistoryHead", lambda *arguments: HistoryHead(*arguments).double())
    monkeypatch.setattr(Packed, "unpack", lambda packed: wide(unpack(packed)))
    monkeypatch.setattr(trainer, "learning_rate", lambda *given: float(np.float32(learning_rate(*given))))
    monkeypatch.setattr(trainer, "distill_share", lambda *given: float(np.float32(distill_share(*given))))
    monkeypatch.setattr(feed, "to_device", lambda batch, _: wide(batch))
    monkeypatch.setattr(TeacherTarget, "of", lambda log_probs, *others: of(log_probs.double(), *others))
    monkeypatch.setattr(terms, "masked_log_softmax", lambda scores, exists: softmax(scores.double(), exists))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"teacher": "none"},
        {"optim": {"epochs": 2, "batch_size": 4, "accumulation": 2}},
        {"distill": {"collisions": "duplicate", "temperature": 2.0}},
        {"distill": HISTORY},
        {"distill": {**HISTORY, "collisions": "duplicate", "temperature": 2.0}},
        {"distill": {"schedule": "linear", "schedule_share": 0.3, "tau_squared": True, "temperature": 1.5}},
        {"optim": {"epochs": 2, "batch_size": 4, "accumulation": 2, "label_smoothing": 0.1}},
    ],
    ids=[
        "distilled",
        "vanilla",
        "two micro-batches",
        "duplicate",
        "history",
        "history, duplicate",
        "linear",
        "smoothed",
    ],
)
def test_repeated_steps_learn_what_single_operations_teach(
    store: Store, tmp_path: Path, in_float64: None, changed: dict[str, Any]
) -> None:
    """Weights, moments and metrics after an epoch, of padded batches and all roads against the roads that are read."""
    check_repeated(store, tmp_path, 8, **changed)


def test_repeated_steps_of_sampled_trips_teach_the_same(store: Store, tmp_path: Path, in_float64: None) -> None:
    """Positions of both kinds have weights of their own, in a recording, too."""
    found = check_repeated(store, tmp_path, 11, **variants(tmp_path, store)["sampled"])
    assert found["train/loss_hindsight"] > 0


def check_repeated(store: Store, tmp_path: Path, steps: int, **changed: Any) -> dict[str, float]:
    """Two sessions of the same settings, of which one repeats; the metrics of the latter."""
    alone, repeated = start(store, tmp_path / "a", **changed), start(store, tmp_path / "b", **changed)
    recorder = Repeating()
    record_steps(repeated, recorder, is_demanded=True)
    expected, found = make(alone, steps), make(repeated, steps)
    assert 1 <= recorder.recorded < steps
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    ours, theirs = state_of(repeated), state_of(alone)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-8, atol=1e-10, msg=partial("{}: {}".format, name))
    assert repeated.trainer.optimizer.param_groups[0]["capturable"] is False
    assert isinstance(repeated.trainer.optimizer.param_groups[0]["lr"], float)  # as checkpoints have it
    return found


def surprise(of: Comparison) -> torch.Tensor:
    """Two, and mean -log p of a position's candidates: not zero at a position that pads."""
    exists = of.batch.layout.exists
    return 2 - of.output.logits.log_softmax(-1).masked_fill(~exists, 0).sum(-1) / exists.sum(-1)


def test_a_further_term_is_repeated(
    store: Store, tmp_path: Path, in_float64: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its line in `terms_of` alone, and not for the positions that pad."""
    known = terms.terms_of
    monkeypatch.setattr(terms, "terms_of", lambda config: (*known(config), Term("surprise", (2.0, 2.0), 0.5, surprise)))
    alone, repeated = start(store, tmp_path / "a"), start(store, tmp_path / "b")
    record_steps(repeated, Repeating(), is_demanded=True)
    expected, found = make(alone, 3), make(repeated, 3)
    assert expected["train/loss_surprise"] > 1
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    theirs = state_of(alone)
    for name, tensor in state_of(repeated).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-8, atol=1e-10, msg=partial("{}: {}".format, name))


def test_recording_a_step_changes_nothing(store: Store, tmp_path: Path) -> None:
    """The operations run twice before they are repeated: weights and moments are those of before."""
    session = start(store, tmp_path / "run")
    found = record_steps(session, Repeating(), is_demanded=True)
    make(session, 1)
    before = state_of(session)
    found._recorded.clear()
    (step,) = steps_of(session, 1)
    (packed,) = [item.packed for item in step.micro_batches]
    reply = step.micro_batches[0].reply
    assert packed is not None and reply is not None
    numbers = {**Divisors(50, 50, 50)._asdict(), "learning_rate": 0.1, "hold": 0}
    answer = step.micro_batches[0].arrays(reply.result())
    assert len(answer) == 2  # the log-probs, and the target's scores
    assert found.ready(cuda_graphs.Request([packed], [answer], numbers)) is not None
    after = state_of(session)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_step_reads_once_and_copies_twice(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start(store, tmp_path / "run")
    record_steps(session, Repeating(), is_demanded=True)
    steps = steps_of(session, 2) * 2
    for step in steps[:2]:
        session.trainer.train_step(step)
    reads, copies = [], []
    read, copy = devices.read, torch.Tensor.copy_
    monkeypatch.setattr(devices, "read", lambda tensor: [reads.append(1), read(tensor)][1])
    monkeypatch.setattr(Repeating, "record", None)  # all shapes are known

    def counted(target: torch.Tensor, source: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if source.dtype in (torch.int32, torch.float32):
            copies.append(len(source))
        return copy(target, source, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    for step in steps[2:]:
        session.trainer.train_step(step)
    assert (len(reads), len(copies)) == (2, 4)


def test_a_step_that_is_not_finite_is_left_out(store: Store, tmp_path: Path) -> None:
    session = start(store, tmp_path / "run", optim={"epochs": 2, "batch_size": 8, "max_bad_steps": 1})
    record_steps(session, Repeating(), is_demanded=True)
    make(session, 1)
    before = state_of(session)
    (step,) = steps_of(session, 1)
    packed = step.micro_batches[0].packed
    assert packed is not None
    floats = packed.array.view(torch.float32)
    floats[packed.shape.places()["seconds"].start] = torch.inf
    session.trainer.train_step(step)
    after = state_of(session)
    assert session.progress.bad_steps == 1 and not session.trainer.sums.count("loss")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    with pytest.raises(TrainingError, match=r"more than optim\.max_bad_steps 1"):
        session.trainer.train_step(step)


class Refusing(Repeating):
    """Cannot record."""

    def record(self, body: cuda_graphs.Body) -> tuple[Callable[[], None], torch.Tensor]:
        """Fails as torch does."""
        body()
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore lines")


class Wrong(Repeating):
    """Repeats something else."""

    def record(self, body: cuda_graphs.Body) -> tuple[Callable[[], None], torch.Tensor]:
        """With a norm that is too large."""
        repeat, result = super().record(body)

        def wrongly() -> None:
            repeat()
            result[1].mul_(1.1)

        return wrongly, result


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [(Refusing, "cannot be recorded: CUDA error: operation not permitted"), (Wrong, "gives another result")],
)
def test_without_recordings_a_run_goes_on_and_says_so(
    store: Store, tmp_path: Path, recorder: type[Repeating], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its steps are then single operations, with the result of a run that never tried."""
    padded, tried = start(store, tmp_path / "a"), start(store, tmp_path / "b")
    record_steps(padded, Repeating()).is_off = True
    record_steps(tried, recorder())
    with caplog.at_level(logging.WARNING):
        expected, found = make(padded, 4), make(tried, 4)
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (warning,) = [record.getMessage() for record in warnings if record.name == cuda_graphs.__name__]
    assert reason in warning and "going on without CUDA graphs" in warning
    assert found == expected
    ours, theirs = state_of(tried), state_of(padded)
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    demanding = start(store, tmp_path / "c")
    record_steps(demanding, recorder(), is_demanded=True)
    with pytest.raises(TrainingError, match=rf"runtime\.graphs=on, but a training step {reason}"):
        make(demanding, 1)


def test_a_step_without_its_answer_is_made_of_single_operations(store: Store, tmp_path: Path) -> None:
    session = start(store, tmp_path / "run", client={"on_failure": "skip", "max_skipped_share": 1.0})
    recorder = Repeating()
    record_steps(session, recorder, is_demanded=True)
    first, second = steps_of(session, 2)
    reply = first.micro_batches[0].reply
    assert reply is not None
    reply._state = "PENDING"
    reply.set_exception(Unavailable("the teacher is away"))
    session.trainer.train_step(first)
    assert recorder.recorded == 0 and session.progress.missed_micro_batches == 1
    session.trainer.train_step(second)
    assert recorder.recorded == 1 and session.progress.missed_micro_batches == 1
    metrics = session.trainer.take_metrics(1.0)
    positions = [step.micro_batches[0].batch.positions for step in (first, second)]
    assert metrics["train/teacher_missed"] == pytest.approx(positions[0] / sum(positions))


def test_a_new_teachers_answer_and_rate_reach_a_recording(store: Store, tmp_path: Path) -> None:
    """What is recorded reads its input anew: other answers and another rate give another step."""
    session = start(store, tmp_path / "run")
    found = record_steps(session, Repeating(), is_demanded=True)
    (step,) = steps_of(session, 1)
    packed, reply = step.micro_batches[0].packed, step.micro_batches[0].reply
    assert packed is not None and reply is not None
    log_q, scores = (array.astype("f4") for array in step.micro_batches[0].arrays(reply.result()))
    sums = []
    for answer in ([log_q, scores], [log_q, scores * 2], [log_q * 2, scores]):
        numbers = {**Divisors(50, 50, 50)._asdict(), "learning_rate": 0.0, "hold": 0}
        recorded = found.ready(cuda_graphs.Request([packed], [answer], numbers))
        assert recorded is not None
        sums.append(recorded.make().sums[0])
    kl, head = ([found[name] for found in sums] for name in ("loss_kl", "loss_head_kl"))
    assert kl[0] != kl[1] and kl[0] == kl[2]
    assert head[0] == head[1] and head[0] != head[2]


def test_the_share_of_the_weight_reaches_a_recording(store: Store, tmp_path: Path) -> None:
    """Of the student's KL."""
    session = start(store, tmp_path / "run")
    found = record_steps(session, Repeating(), is_demanded=True)
    (step,) = steps_of(session, 1)
    packed, reply = step.micro_batches[0].packed, step.micro_batches[0].reply
    assert packed is not None and reply is not None
    answer, sums = step.micro_batches[0].arrays(reply.result()), []
    for share in (0.0, 0.25, 1.0):
        numbers = {**Divisors(50, 50, 50, share)._asdict(), "learning_rate": 0.0, "hold": 0}
        recorded = found.ready(cuda_graphs.Request([packed], [answer], numbers))
        assert recorded is not None
        sums.append(recorded.make().sums[0])
    for share, found_sums in zip((0.0, 0.25, 1.0), sums, strict=True):
        expected = sums[0]["loss"] + share * found_sums["loss_kl"]
        assert found_sums["loss"] == pytest.approx(expected, rel=1e-5)


def test_of_many_shapes_the_first_are_recorded(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others' steps are made of the same operations: the same bits."""
    states = []
    for most in (1, 99):
        monkeypatch.setattr(cuda_graphs, "MOST_GRAPHS", most)
        session = start(store, tmp_path / str(most))
        recorder = Repeating()
        record_steps(session, recorder, is_demanded=True)
        make(session, 12)
        assert recorder.recorded == 1 if most == 1 else recorder.recorded > 1
        states.append(state_of(session))
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())


@pytest.mark.parametrize(
    ("runtime", "device", "world", "expected"),
    [
        ({}, CPU, 1, False),
        ({}, CUDA, 1, True),
        ({}, CUDA, 2, False),
        ({"amp": "off"}, CUDA, 1, True),
        ({"amp": "float16"}, CUDA, 1, False),
        ({"compile": True}, CUDA, 1, False),
        ({"graphs": "off"}, CUDA, 1, False),
        ({"graphs": "on"}, CUDA, 1, True),
        ({"graphs": "on"}, CPU, 1, "needs a CUDA device"),
        ({"graphs": "on"}, CUDA, 2, "is not for several ranks"),
        ({"graphs": "on", "amp": "float16"}, CUDA, 1, "is not for float16"),
        ({"graphs": "on", "compile": True}, CUDA, 1, r"is not for runtime\.compile"),
    ],
)
def test_when_steps_are_recorded(
    monkeypatch: pytest.MonkeyPatch, runtime: dict[str, Any], device: torch.device, world: int, expected: bool | str
) -> None:
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: device.type == "cuda")
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    settings = RuntimeConfig.model_validate(runtime)
    there = Runtime.of(settings, device, Ranks(0, world, 0))
    if isinstance(expected, str):
        with pytest.raises(ConfigError, match=rf"^runtime\.graphs=on {expected}"):
            cuda_graphs.wanted(settings, there)
    else:
        assert cuda_graphs.wanted(settings, there) is expected
