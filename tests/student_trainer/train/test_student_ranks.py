"""Several ranks learn what one learns; as threads of this process, and as processes that torchrun starts."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from hypothesis import given
from hypothesis import strategies as st
from support.fakes import FakeTeacher
from support.random_city import write_random_store
from support.recipes import variants
from support.runs import assert_same_runs, records
from support.students import hoser_of
from support.thread_ranks import build_together, run_together, thread_ranks
from torch import nn

from shared.errors import ConfigError, ReportableError, TrainingError
from shared.store import Store
from shared.training.torch_ranks import RankLost, Ranks
from student_trainer.model.device import Seen, choose
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train import run as training
from student_trainer.train.config import TrainConfig
from student_trainer.train.connect import client_of
from student_trainer.train.headroom import of_run
from student_trainer.train.meters import Sums
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

SMALL: dict[str, dict[str, Any]] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 2, "batch_size": 7, "accumulation": 2, "learning_rate": 3e-3},
    "log": {"tensorboard": False, "every": 1, "progress": False},
    "runtime": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """64 training trips: the last batch of an epoch has one trip, fewer than ranks."""
    return write_random_store(tmp_path_factory.mktemp("random") / "store", trips=64)


def settings_of(store: Store, out: Path, resume: bool = False, **changed: dict[str, Any]) -> TrainConfig:
    sections = {name: {**SMALL.get(name, {}), **changed.get(name, {})} for name in {*SMALL, *changed}}
    top = {"data": store.path, "out": out, "teacher": "fake:1", "seed": 3, "resume": resume}
    return TrainConfig.model_validate({**top, **sections})


def sessions(settings: TrainConfig, store: Store, ranks: Sequence[Ranks]) -> list[Session]:
    """One session a rank, as `run` makes them."""
    resumed = find_checkpoint(settings, store)
    return build_together(
        lambda r: Session(settings, store, on_cpu(settings, r), FakeTeacher(), copy.deepcopy(resumed)), ranks
    )


def on_cpu(settings: TrainConfig, ranks: Ranks) -> Runtime:
    return Runtime.of(settings.runtime, torch.device("cpu"), ranks)


def train(settings: TrainConfig, store: Store, world: int) -> list[Session]:
    """Trains with so many threads."""
    ranks = thread_ranks(world) if world > 1 else [Ranks()]
    made = sessions(settings, store, ranks)
    results = [made[0].train()] if world == 1 else run_together([session.train for session in made], ranks)
    assert results == [None] * world
    return made


def assert_alike(a: Path, b: Path) -> None:
    """Losses and validation of two runs, step by step, within rounding."""
    ours, theirs = records(a), records(b)
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for left, right in zip(ours, theirs, strict=True):
        assert left == pytest.approx(right, rel=2e-4, abs=1e-6)


@given(st.integers(0, 50), st.integers(1, 8), st.integers(0, 99))
def test_shares_are_even_and_together_the_whole(count: int, world: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    trips, lengths = random.permutation(count) + 100, random.integers(2, 90, count)
    shares = [Ranks(rank, world).share(trips, lengths) for rank in range(world)]
    assert sorted(np.concatenate(shares)) == sorted(trips)
    length_of = dict(zip(trips.tolist(), lengths.tolist(), strict=True))
    steps = [sum(length_of[trip] for trip in share.tolist()) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert max(steps) - min(steps) <= max(lengths, default=0)
    for share in shares:
        assert [trip for trip in trips if trip in share] == share.tolist()
    if world == 1:
        assert shares[0].tolist() == trips.tolist()


def parameters_of(gradients: Sequence[float | None]) -> list[nn.Parameter]:
    """Parameters [2, 3] with constant gradients."""
    made = [nn.Parameter(torch.zeros(2, 3)) for _ in gradients]
    for parameter, gradient in zip(made, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.full((2, 3), gradient)
    return made


def test_gradients_add_up_and_those_that_nobody_has_stay_away() -> None:
    ranks = thread_ranks(3)
    held = [parameters_of(values) for values in ([1.0, 2.0, None], [10.0, None, None], [None, None, None])]

    def work(number: int) -> float:
        return float(ranks[number].sum_gradients(held[number], torch.tensor(0.5)))

    assert run_together([partial(work, n) for n in range(3)], ranks) == [1.5] * 3
    for parameters in held:
        first, second, third = (p.grad for p in parameters)
        assert first is not None and second is not None and third is None
        assert first.tolist() == [[11.0] * 3] * 2
        assert second.tolist() == [[2.0] * 3] * 2


def test_one_bad_rank_makes_all_skip(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = thread_ranks(2)
    made = sessions(settings_of(store, tmp_path / "run"), store, ranks)
    second = made[1].trainer
    plain = second._accumulate

    def bad_at_first(*given: Any) -> torch.Tensor:
        return plain(*given) & (second.progress.step > 0)

    monkeypatch.setattr(second, "_accumulate", bad_at_first)
    assert run_together([session.train for session in made], ranks) == [None, None]
    assert [session.progress.bad_steps for session in made] == [1, 1]


@pytest.mark.parametrize(("world", "variant"), [(2, "default"), (2, "sampled"), (3, "sampled"), (3, "history")])
def test_ranks_learn_what_one_learns(store: Store, tmp_path: Path, world: int, variant: str) -> None:
    """Losses of every step, validation and weights; with micro-batches, and ranks that have no trip in some."""
    changed = {**variants(tmp_path, store)[variant], "optim": {"batch_size": world}}
    (alone,) = train(settings_of(store, tmp_path / "one", **changed), store, 1)
    several = train(settings_of(store, tmp_path / "several", **changed), store, world)
    assert min(len(index) for step in alone.schedule.from_step(0) for index in step.micro_batches) < world
    assert_alike(tmp_path / "one", tmp_path / "several")
    assert all(session.progress == several[0].progress for session in several)
    contents = [checkpoints.load(tmp_path / name / "checkpoints" / "last.pt") for name in ("one", "several")]
    heads = [content.distillation for content in contents]
    assert heads[0].keys() == heads[1].keys() and bool(heads[0]) == (variant != "history")
    for name, value in heads[0].items():
        torch.testing.assert_close(heads[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
        if name == "target":
            assert torch.equal(heads[1][name], value)  # the first rank has fitted it alone
    one, last = (content.model for content in contents)
    for name in one:  # the first session holds the best weights by now, the others the last
        assert all(torch.equal(session.model.state_dict()[name], last[name]) for session in several[1:]), name
    learned = [
        torch.cat([weights[name].flatten() for name, _ in hoser_of(alone.model).named_parameters()])
        for weights in (one, last)
    ]
    assert (learned[0] - learned[1]).norm() < 1e-4 * learned[0].norm()


def test_ranks_measure_what_one_measures(store: Store, tmp_path: Path) -> None:
    """The same weights: nothing differs but the order in which float64 sums are added; the same bits on all ranks."""
    (alone,) = sessions(settings_of(store, tmp_path / "run"), store, [Ranks()])
    expected = alone.validator.measure(alone.model, alone.trainer.head)
    ranks = thread_ranks(5)  # 21 trips in batches of 7: two ranks have none
    made = sessions(settings_of(store, tmp_path / "run"), store, ranks)
    measured = run_together([partial(s.validator.measure, s.model, s.trainer.head) for s in made], ranks)
    assert all(found == measured[0] for found in measured)
    assert measured[0] == pytest.approx(expected, rel=1e-12)
    left = [of_run(s.model, s.val_feed, s.validator, torch.device("cpu"), 64) for s in (alone, made[0])]
    assert left[0] == left[1] and left[0] is not None and left[0]["trips"] == 21, "the first rank has all ranks' trips"


def test_every_rank_asks_about_its_own_share(store: Store, tmp_path: Path) -> None:
    ranks = thread_ranks(2)
    teachers = [FakeTeacher(), FakeTeacher()]
    settings = settings_of(store, tmp_path / "run")
    made = build_together(lambda r: Session(settings, store, on_cpu(settings, r), teachers[r.rank]), ranks)
    train_steps, val_steps = (int((store.trips(split).lengths - 1).sum()) for split in ("train", "val"))
    assert [sum(query.positions for query in teacher.queries) for teacher in teachers] == [val_steps, 0]  # the fit
    for teacher in teachers:
        teacher.queries.clear()
    assert run_together([session.train for session in made], ranks) == [None, None]
    asked = [sum(query.positions for query in teacher.queries) for teacher in teachers]
    assert sum(asked) == 2 * train_steps + val_steps
    assert min(asked) > 0.4 * sum(asked)


@pytest.mark.parametrize("world", [1, 3])
def test_resumes_with_another_number_of_ranks(store: Store, tmp_path: Path, world: int) -> None:
    train(settings_of(store, tmp_path / "whole"), store, 1)
    ranks = thread_ranks(2)
    made = sessions(settings_of(store, tmp_path / "cut"), store, ranks)
    plain = made[1].trainer.train_step

    def signalled(step: Any) -> None:
        plain(step)
        made[1].runtime.stop.requested = step.plan.number == 6  # on one rank only

    made[1].trainer.train_step = signalled  # type: ignore[method-assign]
    stopped = run_together([session.train for session in made], ranks)
    assert all(isinstance(result, KeyboardInterrupt) for result in stopped)
    train(settings_of(store, tmp_path / "cut", resume=True), store, world)
    assert_alike(tmp_path / "whole", tmp_path / "cut")


def test_a_lost_rank_leaves_a_checkpoint_of_the_last_whole_step(store: Store, tmp_path: Path) -> None:
    train(settings_of(store, tmp_path / "whole"), store, 2)
    ranks = thread_ranks(2)
    made = sessions(settings_of(store, tmp_path / "cut", log={"checkpoint_every": 1}), store, ranks)
    plain = made[1].trainer._update

    def lost(finite: torch.Tensor, found: Sums) -> bool:
        if made[1].progress.step == 7:
            raise MemoryError
        return plain(finite, found)

    made[1].trainer._update = lost  # type: ignore[method-assign]
    first, second = run_together([session.train for session in made], ranks)
    assert isinstance(first, RankLost) and isinstance(second, MemoryError)
    train(settings_of(store, tmp_path / "cut", resume=True), store, 2)
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", but_records=1)  # of that step, without the lost rank's share


def poison(session: Session, number: int) -> None:
    """Makes the loss of this rank's share of some steps infinite."""
    prepare, count = session.feed.prepare, iter(range(10**6))

    def prepared(index: np.ndarray, ask: bool = True) -> Any:
        item = prepare(index, ask)
        if next(count) >= number:
            item.batch.temporal[:] = torch.inf
        return item

    session.feed.prepare = prepared  # type: ignore[method-assign]


def test_a_loss_that_is_not_finite_on_one_rank_counts_on_all(store: Store, tmp_path: Path) -> None:
    ranks = thread_ranks(2)
    made = sessions(settings_of(store, tmp_path / "run", optim={"max_bad_steps": 2}), store, ranks)
    poison(made[1], 4)
    results = run_together([session.train for session in made], ranks)
    assert all(isinstance(result, TrainingError) and "max_bad_steps 2" in str(result) for result in results)
    assert made[0].progress == made[1].progress
    for name, weight in made[0].model.state_dict().items():
        assert torch.isfinite(weight).all() and torch.equal(weight, made[1].model.state_dict()[name]), name


def test_weights_that_differ_between_ranks_end_the_run(store: Store, tmp_path: Path) -> None:
    ranks = thread_ranks(3)
    made = sessions(settings_of(store, tmp_path / "run"), store, ranks)
    weight = hoser_of(made[2].model).navigator.q_proj.weight
    weight.data[0, 0] = torch.nextafter(weight.data[0, 0], torch.tensor(9.0))
    for result in run_together([session.train for session in made], ranks):
        assert isinstance(result, TrainingError) and "ranks [2] differ" in str(result)


def test_what_fails_on_one_rank_fails_on_all_with_its_message() -> None:
    ranks = thread_ranks(3)

    def work(rank: int) -> int:
        if rank == 1:
            raise ConfigError("no such thing")
        return rank

    results = run_together([partial(r.together, partial(work, r.rank)) for r in ranks], ranks)
    assert [(type(result), str(result)) for result in results] == [(ReportableError, "on rank 1: no such thing")] * 3


def test_fewer_trips_than_ranks_and_a_device_for_all_are_refused(store: Store, tmp_path: Path) -> None:
    settings = settings_of(store, tmp_path / "run", optim={"batch_size": 2})
    with pytest.raises(ConfigError, match="batch_size 2 is for all ranks together, and there are 3"):
        training.open_inputs(settings, Ranks(0, 3), contextlib.ExitStack())
    two = Seen(2)
    assert choose("auto", Seen(0), local=1, world=2) == torch.device("cpu")
    assert choose("cuda", two, local=1, world=8) == torch.device("cuda", 1)
    with pytest.raises(ConfigError, match="device=cuda:1 is one device; 8 ranks take one each with device=cuda"):
        choose("cuda:1", two, local=1, world=8)
    with pytest.raises(ConfigError, match=r"LOCAL_RANK=2 needs cuda:2, but torch sees 2 .* start at most 2 ranks on"):
        choose("cuda", two, local=2, world=3)


def test_ranks_have_their_own_names_for_the_teacher() -> None:
    client = TrainConfig.model_validate({"data": "d", "out": "o", "client": {"name": "n" * 64}}).client
    names = [client_of(client, Ranks(rank, 12)).name for rank in range(12)]
    assert len(set(names)) == 12 and max(map(len, names)) == 64
    assert client_of(client, Ranks()).name == client.name


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@contextlib.contextmanager
def torchrun(store: Store, out: Path, *flags: str, settings: Sequence[str] = ()) -> Iterator[subprocess.Popen[str]]:
    """Two ranks on gloo; killed at the end if they still run."""
    small = [f"{part}.{key}={value}" for part, values in SMALL.items() for key, value in values.items()]
    command = [*TORCHRUN, "-m", "student_trainer", "train", "--data", store.path, "--out", out, *flags, *small]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), "seed=3", *settings],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def rank_process(launcher: subprocess.Popen[str], rank: int) -> psutil.Process:
    """A rank that a launcher has started."""
    return next(p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == str(rank))


def wait_for_steps(out: Path, steps: int) -> None:
    """Returns when so many records are there."""
    give_up, path = time.monotonic() + 120, out / "metrics.jsonl"
    while not path.exists() or len(path.read_text().splitlines()) < steps:
        assert time.monotonic() < give_up, f"{path} did not grow"
        time.sleep(0.02)


def ours(err: str) -> list[str]:
    """Lines that the program has written about its end, not the launcher."""
    return [line for line in err.splitlines() if " E " in line[:32] or line.startswith("student-trainer")]


@pytest.mark.long
@pytest.mark.integration
def test_two_processes_learn_what_one_learns(store: Store, tmp_path: Path, running_teacher: TeacherStarter) -> None:
    """With a real teacher; then the same directory once more, which all ranks leave with one message."""
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    with running_teacher(tmp_path / "teacher") as server:
        settings = settings_of(store, tmp_path / "one").model_copy(update={"teacher": server.address})
        assert training.run(settings) == 0
        with torchrun(store, tmp_path / "two", "--teacher", server.address) as process:
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0, err
        assert out.count("\n") == 1  # one summary
        assert_alike(tmp_path / "one", tmp_path / "two")
        with torchrun(store, tmp_path / "two", "--teacher", server.address) as process:
            out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and not out
    (line,) = ours(err)
    assert "holds a run; go on with --resume" in line


@pytest.mark.long
@pytest.mark.integration
def test_terminated_killed_and_resumed_equals_undisturbed(store: Store, tmp_path: Path) -> None:
    """Two ranks stopped by the launcher, then one of them killed: each leaves a checkpoint; resumed to the bit."""
    more = ("optim.epochs=12", "log.checkpoint_every=7")
    with torchrun(store, tmp_path / "whole", settings=more) as process:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    with torchrun(store, tmp_path / "cut", settings=more) as process:
        wait_for_steps(tmp_path / "cut", 5)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert ours(err) == ["student-trainer train: interrupted"]
    assert err.count("go on with --resume") == 1
    with torchrun(store, tmp_path / "cut", "--resume", settings=more) as process:
        wait_for_steps(tmp_path / "cut", 20)
        begin = time.monotonic()
        rank_process(process, 1).kill()
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert time.monotonic() - begin < 30
    (line,) = ours(err)
    assert "lost contact with another rank" in line and "again with --resume" in line
    with torchrun(store, tmp_path / "cut", "--resume", settings=more) as process:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", but_records=1)  # of a step that the lost rank did not end
