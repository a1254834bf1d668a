"""What a run does whose teacher fails for good: it stops with a checkpoint, or leaves the teacher's term out."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.recipes import variants
from support.runs import records
from support.thread_ranks import build_together, run_together, thread_ranks

from shared.errors import CompatibilityError, InvalidRequest, TeacherError, Unavailable
from shared.store import Store
from shared.training.torch_ranks import RankLost, Ranks
from shared.wire import ScoreQuery, ScoreReply
from student_trainer.train.config import TrainConfig
from student_trainer.train.meters import Sums
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import prepare_step
from student_trainer.train.session import Session

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 8, "accumulation": 2},
    "batch": {"bucket_batches": 2},
    "log": {"tensorboard": False, "every": 1, "progress": False},
    "runtime": {"device": "cpu", "threads": 1},
}
"""60 trips: 8 micro-batches, 4 steps an epoch, and 3 batches of validation."""
SKIP: dict[str, Any] = {"on_failure": "skip", "max_skipped_share": 1}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


class FailingTeacher(FakeTeacher):
    """Fails the queries whose numbers, from 0, satisfy a condition; those before 0 are for the fit of the target."""

    def __init__(self, fails: Callable[[int], bool], error: Exception | None = None, for_the_fit: int = 1) -> None:
        super().__init__()
        self._fails, self._error = fails, error or Unavailable("scripted")
        self._for_the_fit = for_the_fit

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`."""
        number, future = len(self.queries) - self._for_the_fit, super().submit(query)
        if not self._fails(number):
            return future
        failed: Future[ScoreReply] = Future()
        failed.set_exception(self._error)
        return failed


def settings_of(store: Store, out: Path, teacher: str = "fake:1", **client: Any) -> TrainConfig:
    resume = client.pop("resume", False)
    values = {"data": store.path, "out": out, "teacher": teacher, "seed": 3, "resume": resume}
    return TrainConfig.model_validate({**values, **SMALL, "client": client})


def session_of(settings: TrainConfig, store: Store, teacher: FakeTeacher, ranks: Ranks | None = None) -> Session:
    resumed = find_checkpoint(settings, store) if ranks is None else None
    runtime = Runtime.of(settings.runtime, torch.device("cpu"), ranks or Ranks())
    return Session(settings, store, runtime, teacher, resumed)


def train(settings: TrainConfig, store: Store, teacher: FakeTeacher) -> Session:
    session = session_of(settings, store, teacher)
    session.train()
    return session


def last_weights(out: Path) -> dict[str, torch.Tensor]:
    content: dict[str, Any] = torch.load(out / "checkpoints" / "last.pt", weights_only=True)
    return dict(content["model"])


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = last_weights(a), last_weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    "error",
    [Unavailable("gone"), InvalidRequest("wrong"), CompatibilityError("another")],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("on_failure", ["wait", "abort"])
def test_a_failure_for_good_stops_with_a_checkpoint(
    store: Store, tmp_path: Path, on_failure: str, error: Exception
) -> None:
    """It names the checkpoint; the step is not made, and a resumed run makes it: the same bits in the end."""
    train(settings_of(store, tmp_path / "whole"), store, FakeTeacher())
    settings = settings_of(store, tmp_path / "cut", on_failure=on_failure)
    with pytest.raises(type(error), match=r"checkpoint at step 2: .*last\.pt; go on with --resume"):
        train(settings, store, FailingTeacher(lambda number: number == 5, error))
    train(settings_of(store, tmp_path / "cut", resume=True), store, FakeTeacher())
    assert_same_runs_but_client(tmp_path / "whole", tmp_path / "cut")


def assert_same_runs_but_client(a: Path, b: Path) -> None:
    assert_same_weights(a, b)
    assert records(a) == records(b)


def test_a_failure_in_validation_stops_with_a_checkpoint(store: Store, tmp_path: Path) -> None:
    train(settings_of(store, tmp_path / "whole"), store, FakeTeacher())
    calm = session_of(settings_of(store, tmp_path / "calm"), store, FakeTeacher())
    cut = session_of(settings_of(store, tmp_path / "cut"), store, FakeTeacher())
    cut.validator._feed._teacher = FailingTeacher(lambda number: number == 1, for_the_fit=0)
    with pytest.raises(Unavailable, match="checkpoint at step 4"):
        cut.train()
    assert calm.progress.history == cut.progress.history == []
    train(settings_of(store, tmp_path / "cut", resume=True), store, FakeTeacher())
    assert_same_runs_but_client(tmp_path / "whole", tmp_path / "cut")


def test_without_any_answer_a_skipping_run_learns_what_a_vanilla_one_learns(store: Store, tmp_path: Path) -> None:
    """Whose times count as much; beside a teacher they count more, whether it answers or not."""
    vanilla = settings_of(store, tmp_path / "vanilla", teacher="none")
    optim = vanilla.optim.model_copy(update={"time_weight": vanilla.distill.time_factor})
    train(vanilla.model_copy(update={"optim": optim}), store, FakeTeacher())
    teacher = FailingTeacher(lambda number: number >= 0)
    session = session_of(settings_of(store, tmp_path / "skipping", **SKIP), store, teacher)
    assert session.trainer.head is not None
    head = {name: value.clone() for name, value in session.trainer.head.state_dict().items()}
    session.train()
    assert_same_weights(tmp_path / "vanilla", tmp_path / "skipping")
    assert all(torch.equal(value, session.trainer.head.state_dict()[name]) for name, value in head.items())
    positions = 2 * int((store.trips("train").lengths - 1).sum())
    assert session.summary()["missed_positions"] == positions
    assert session.summary()["missed_micro_batches"] == 16
    for record in records(tmp_path / "skipping"):
        assert "val/kl" not in record and "train/loss_kl" not in record
        assert record.get("train/teacher_missed", 1.0) == record.get("val/teacher_missed", 1.0) == 1.0


def test_a_skipping_run_whose_teacher_never_fails_is_as_any_other(store: Store, tmp_path: Path) -> None:
    train(settings_of(store, tmp_path / "waiting"), store, FakeTeacher())
    train(settings_of(store, tmp_path / "skipping", on_failure="skip"), store, FakeTeacher())
    assert_same_weights(tmp_path / "waiting", tmp_path / "skipping")
    assert all(record.get("train/teacher_missed", 0.0) == 0 for record in records(tmp_path / "skipping"))


@pytest.mark.parametrize("client", [{}, SKIP, {"on_failure": "abort"}], ids=["wait", "skip", "abort"])
def test_a_run_whose_teacher_fails_during_the_fit_does_not_begin(
    store: Store, tmp_path: Path, client: dict[str, Any]
) -> None:
    """Without the target there is nothing to skip; the same command, given again, begins it."""
    settings = settings_of(store, tmp_path / "run", **client)
    with pytest.raises(Unavailable, match="scripted"):
        session_of(settings, store, FailingTeacher(lambda number: True))
    assert not (tmp_path / "run").exists()
    assert session_of(settings, store, FakeTeacher()).feed.target is not None


def test_the_other_positions_pull_as_hard_as_they_would_have(store: Store, tmp_path: Path) -> None:
    """The gradient of a step with one of two answers is the mean of those with both and with none, of the KL's part."""
    gradients = []
    for fails in ((), (0,), (1,), (0, 1)):
        teacher = FailingTeacher(fails.__contains__)
        session = session_of(settings_of(store, tmp_path / "run", **SKIP), store, teacher)
        step = prepare_step(session.feed, session.model.graph, next(session.schedule.from_step(0)))
        assert session.trainer.compute_gradients(step, Sums())
        flat = [p.grad.flatten() for p in session.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(flat).double())
    both, second, first, none = gradients
    torch.testing.assert_close((first - none) + (second - none), both - none, rtol=1e-3, atol=1e-7)
    assert (both - none).norm() > 1e-3


def test_a_teacher_that_comes_back_is_used_again(store: Store, tmp_path: Path) -> None:
    """In training, and in validation, which asks for what it has missed."""
    settings = settings_of(store, tmp_path / "run", **SKIP)
    session = session_of(settings, store, FailingTeacher(lambda number: 2 <= number < 5))
    session.validator._feed._teacher = FailingTeacher(lambda number: number == 1, for_the_fit=0)
    session.train()
    assert session.progress.missed_micro_batches == 3
    missed = [record["train/teacher_missed"] for record in records(tmp_path / "run") if "train/loss" in record]
    assert missed[0] == 0 and missed[1] == 1 and 0 < missed[2] < 1 and set(missed[3:]) == {0.0}
    first, second = session.progress.history
    assert 0 < first["teacher_missed"] < 1 and "teacher_missed" not in second
    assert len(session.validator._feed._teacher.queries) == 4


def test_too_many_skipped_stop_the_run_before_the_step(store: Store, tmp_path: Path) -> None:
    """What was skipped before stays counted; resumed with a teacher, the run makes the step with it."""
    settings = settings_of(store, tmp_path / "cut", on_failure="skip", max_skipped_share=0.15)
    with pytest.raises(Unavailable, match=r"max_skipped_share 0\.15 allows; checkpoint at step 2"):
        train(settings, store, FailingTeacher(lambda number: number in (1, 4, 5)))
    session = train(
        settings_of(store, tmp_path / "cut", on_failure="skip", max_skipped_share=0.15, resume=True),
        store,
        FakeTeacher(),
    )
    assert session.progress.missed_micro_batches == 1
    train(settings_of(store, tmp_path / "once", **SKIP), store, FailingTeacher(lambda number: number == 1))
    assert_same_weights(tmp_path / "once", tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").write_text(json.dumps(session.summary()))
    assert session.summary()["missed_positions"] > 0


def test_what_is_skipped_leaves_every_term_out(store: Store, tmp_path: Path) -> None:
    """Head, target and sampled trips: a step without an answer has the losses of labels only, and its divisors."""
    more = variants(tmp_path, store)["sampled"]
    settings = settings_of(store, tmp_path / "run", **SKIP).model_dump() | {"client": SKIP}
    settings |= {name: settings[name] | values for name, values in more.items()}
    session = session_of(TrainConfig.model_validate(settings), store, FailingTeacher(lambda number: number in (2, 3)))
    session.train()
    with_it, without = records(tmp_path / "run")[0], records(tmp_path / "run")[1]
    terms = {"train/loss_kl", "train/loss_head_kl", "train/target_nll", "train/target_accuracy"}
    assert terms <= with_it.keys() and not terms & without.keys()
    assert (with_it["train/teacher_missed"], without["train/teacher_missed"]) == (0.0, 1.0)
    assert {"train/loss_next_road", "train/loss_time", "train/loss_hindsight"} <= without.keys()
    assert session.progress.missed_micro_batches == 2 and session.progress.bad_steps == 0


def test_skip_does_not_hide_a_request_that_is_wrong(store: Store, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="wrong"):
        train(
            settings_of(store, tmp_path / "run", **SKIP),
            store,
            FailingTeacher(lambda n: n == 3, InvalidRequest("wrong")),
        )


def test_ranks_agree_on_what_is_skipped(store: Store, tmp_path: Path) -> None:
    """One rank's answers are missing: all make the same updates, count the same, and know the same."""
    ranks = thread_ranks(2)
    teachers = [FakeTeacher(), FailingTeacher(lambda number: number in (1, 2, 6), for_the_fit=0)]
    settings = settings_of(store, tmp_path / "run", **SKIP)
    made = build_together(lambda r: session_of(settings, store, teachers[r.rank], r), ranks)
    assert run_together([session.train for session in made], ranks) == [None, None]
    first, second = made
    assert first.progress == second.progress
    assert first.progress.missed_micro_batches == 3
    last = last_weights(tmp_path / "run")
    for name, weight in second.model.state_dict().items():
        assert torch.equal(weight, last[name]), name


def test_ranks_stop_together_when_too_much_is_skipped(store: Store, tmp_path: Path) -> None:
    ranks = thread_ranks(2)
    teachers = [FakeTeacher(), FailingTeacher(lambda number: number == 4, for_the_fit=0)]
    settings = settings_of(store, tmp_path / "run", on_failure="skip", max_skipped_share=0.01)
    made = build_together(lambda r: session_of(settings, store, teachers[r.rank], r), ranks)
    results = run_together([session.train for session in made], ranks)
    assert all(isinstance(result, Unavailable) and "max_skipped_share" in str(result) for result in results)
    assert made[0].progress.step == made[1].progress.step == 2
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_a_rank_whose_teacher_fails_ends_all_and_leaves_a_checkpoint(store: Store, tmp_path: Path) -> None:
    ranks = thread_ranks(2)
    teachers = [FakeTeacher(), FailingTeacher(lambda number: number == 4, for_the_fit=0)]
    settings = settings_of(store, tmp_path / "run", on_failure="abort")
    made = build_together(lambda r: session_of(settings, store, teachers[r.rank], r), ranks)
    first, second = run_together([session.train for session in made], ranks)
    assert isinstance(first, RankLost) and isinstance(second, TeacherError)
    assert made[0].progress.step == 2
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_what_failures_cost_is_in_the_metrics(store: Store, tmp_path: Path) -> None:
    teacher = FakeTeacher()
    session = session_of(settings_of(store, tmp_path / "run"), store, teacher)
    teacher.failure_stats.retries, teacher.failure_stats.seconds = 7, 1.5
    session.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    told = [(line["perf/teacher_retries"], line["perf/teacher_away_s"]) for line in lines if "train/loss" in line]
    assert told[0] == (7, 1.5) and set(told[1:]) == {(0, 0)}
