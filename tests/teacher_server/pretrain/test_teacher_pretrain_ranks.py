"""Several ranks, and several micro-batches, train what one trains: as threads, and as processes over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from support.teacher_files import circular_trips, write_store
from support.thread_ranks import run_together, thread_ranks

from shared import teacher_file
from shared.errors import ConfigError
from shared.store import Store
from shared.training.stop import StopSignals
from shared.training.torch_ranks import Ranks
from teacher_server.lmtad.model import Architecture
from teacher_server.pretrain import checkpoint as checkpoints
from teacher_server.pretrain import run as pretraining
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import Spans, read_corpus
from teacher_server.pretrain.epochs import find_architecture
from teacher_server.pretrain.layout import RunFiles
from teacher_server.pretrain.session import Session
from teacher_server.pretrain.trainer import MEMORY_SHARE, Surroundings, Trainer, tokens_within

SMALL: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_tokens": 128, "warmup_steps": 2, "epochs": 3, "device": "cpu",
    "threads": 1, "learning_rate": 1e-2, "dropout": 0.0, "candidate_trips": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circle")
    return write_store(folder / "store", {"train": circular_trips(45, 0), "val": circular_trips(9, 1)})


def settings(store: Path, out: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": store, "out": out, "log": {"every": 1}, **SMALL, **changes})


def records(out: Path) -> list[dict[str, float]]:
    lines = RunFiles(out).metrics.read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]


def assert_alike(a: Path, b: Path) -> None:
    """Losses, gradients' norms and held-out figures of every step, within rounding."""
    ours, theirs = records(a), records(b)
    assert len(ours) > 9 and [record.keys() for record in ours] == [record.keys() for record in theirs]
    for left, right in zip(ours, theirs, strict=True):
        assert left == pytest.approx(right, rel=2e-4, abs=1e-6)


def assert_same_weights(a: Path, b: Path) -> None:
    """Of two teacher files, within rounding."""
    ours, theirs = (teacher_file.read(path)[1] for path in (a, b))
    for name, array in ours.items():
        assert np.linalg.norm(array - theirs[name]) <= 1e-3 * np.linalg.norm(array), name


def session_of(made: PretrainConfig, ranks: Ranks) -> Session:
    """One rank's part of a run. Threads share torch's generator: they make their models one after the other."""
    return Session(made, Store(made.data), Surroundings(torch.device("cpu"), ranks, StopSignals()))


@pytest.mark.parametrize("most", [16, 40, 100])
def test_micro_batches_add_up_to_their_batch(store: Path, tmp_path: Path, most: int) -> None:
    pretraining.run(settings(store, tmp_path / "one"))
    pretraining.run(settings(store, tmp_path / "cut", micro_batch_tokens=most))
    assert_alike(tmp_path / "one", tmp_path / "cut")
    assert_same_weights(tmp_path / "one", tmp_path / "cut")


@pytest.mark.parametrize(("world", "changes"), [(2, {}), (3, {"batch_tokens": 20}), (2, {"micro_batch_tokens": 30})])
def test_ranks_train_what_one_trains(store: Path, tmp_path: Path, world: int, changes: dict[str, int]) -> None:
    """With batches of fewer trips than ranks, and ranks that accumulate."""
    alone = session_of(settings(store, tmp_path / "one", **changes), Ranks())
    alone.train()
    together = thread_ranks(world)
    sessions = [session_of(settings(store, tmp_path / "several", **changes), rank) for rank in together]
    assert run_together([session.train for session in sessions], together) == [None] * world
    assert_alike(tmp_path / "one", tmp_path / "several")
    for session in sessions:
        for name, tensor in session.best.items():
            assert torch.equal(tensor, sessions[0].best[name])
            assert (tensor - alone.best[name]).norm() <= 1e-3 * alone.best[name].norm(), name


def test_the_random_numbers_of_other_ranks_follow_from_the_step(store: Path, tmp_path: Path) -> None:
    """So the first rank's checkpoint holds all that is needed; its own are those of a process alone."""
    made = settings(store, tmp_path / "t", dropout=0.2)
    opened = Store(store)
    corpus, vocabulary = read_corpus(opened, "train"), opened.tokeniser.vocabulary
    architecture = find_architecture(made, vocabulary, corpus)
    spans, batch = Spans(corpus.starts, corpus.lengths), np.argsort(corpus.lengths)[:8]

    def states(ranks: Ranks, steps: list[int]) -> list[bytes]:
        """After some steps of a fresh trainer, whose sums are its own values."""
        trainer = Trainer(made, architecture, vocabulary, Surroundings(torch.device("cpu"), ranks, StopSignals()))
        found = []
        for step in steps:
            trainer.train_step(corpus, spans, batch, step, 1e-3, lambda *_: None)
            found.append(trainer.random["cpu"].numpy().tobytes())
        return found

    first, second, third = (states(Ranks(rank, 3), [0, 1, 2]) for rank in range(3))
    assert states(Ranks(1, 3), [2]) == second[2:] and states(Ranks(2, 3), [1, 2]) == third[1:]
    assert len({*first, *second, *third}) == 9
    torch.manual_seed(made.seed)
    assert states(Ranks(), [0]) != first[:1], "the share of a third draws fewer numbers"


def test_a_device_for_all_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match="device=cuda:1 is one device; 2 ranks take one each with device=cuda"):
        pretraining.device_of("cuda:1", Ranks(0, 2))
    assert pretraining.device_of("cpu", Ranks(1, 2)) == torch.device("cpu")


def test_the_budget_of_a_device_follows_its_memory_and_the_model() -> None:
    small = Architecture(n_layer=2, n_head=2, n_embd=64, block_size=50, vocab_size=1000, bias=False)
    assert tokens_within(0, small, 2) == 50, "a sequence must fit"
    gib = tokens_within(1 << 30, small, 2)
    assert gib == int(MEMORY_SHARE * (1 << 30)) // (34 * 2 * 64 + 18 * 1000)
    assert tokens_within(2 << 30, small, 2) == pytest.approx(2 * gib, rel=1e-4)
    assert tokens_within(1 << 30, small, 4) < gib


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def command(store: Path, out: Path, *more: str) -> list[str]:
    """`pretrain` without the interpreter, with small settings."""
    small = [f"{name}={value}" for name, value in SMALL.items()]
    return [*map(str, ("pretrain", "--data", store, "--out", out)), *small, "log.every=1", *more]


@pytest.mark.integration
def test_torchrun_trains_what_one_process_trains_and_resumes(store: Path, tmp_path: Path) -> None:
    """Two ranks over gloo with the same global batch; then ended by SIGTERM at a step, gone on with to the end."""
    pretraining.run(settings(store, tmp_path / "one"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    run = partial(
        subprocess.run, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=200, check=False
    )
    done = run([sys.executable, *TORCHRUN, "-m", "teacher_server", *command(store, tmp_path / "two")])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == records(tmp_path / "one")[-1]["step"]
    assert_alike(tmp_path / "one", tmp_path / "two")
    assert_same_weights(tmp_path / "one", tmp_path / "two")
    again = run([sys.executable, *TORCHRUN, "-m", "teacher_server", *command(store, tmp_path / "two", "--resume")])
    assert again.returncode == 0 and again.stdout == done.stdout, again.stderr
    refused = run([sys.executable, *TORCHRUN, "-m", "teacher_server", *command(store, tmp_path / "two")])
    assert refused.returncode != 0 and refused.stderr.count("add overwrite=true") == 1, refused.stderr


LOST = """
import os, signal, sys
from shared.training import heartbeats
from teacher_server.__main__ import main
from shared.training import torch_ranks as ranks

heartbeats.BEAT_SECONDS, heartbeats.LOST_SECONDS = 0.1, 3.0

class Never:
    def is_completed(self): return False
    def wait(self): raise AssertionError

plain, sums = ranks.TorchGroup.sum_, [0]

def sum_(group, values):
    "Sums of gradients are those of a library that never says that a rank has died."
    if not hasattr(values, "is_cuda"):
        return plain(group, values)
    sums[0] += 1
    if sums[0] < 6:
        return plain(group, values)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return Never()

def init(group):
    group.is_asynchronous = True

ranks.TorchGroup.sum_, ranks.TorchGroup.__init__ = sum_, init
meet = ranks.TorchGroup.meet

def meet_over_gloo(group, *arguments):
    group.is_asynchronous = False
    try:
        return meet(group, *arguments)
    finally:
        group.is_asynchronous = True

ranks.TorchGroup.meet = meet_over_gloo
sys.exit(main())
"""


@pytest.mark.integration
def test_a_rank_lost_within_a_device_s_library_leaves_a_checkpoint_and_a_message(store: Path, tmp_path: Path) -> None:
    """Two processes without a launcher that would end the other one; the sum of step 6 never ends on rank 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    out = tmp_path / "cut"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", LOST, *command(store, out)], cwd=REPOSITORY, text=True,
            env=os.environ | there | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        _, err = started[0].communicate(timeout=200)
        started[1].wait(timeout=60)
    finally:
        for process in started:
            process.kill()
            process.communicate()
    assert started[1].returncode == -9 and started[0].returncode == 2, err
    assert err.count("rank 0 of 2 lost contact with another rank") == 1 and "no sign of life from rank 1" in err
    assert "stopped; checkpoint at step 5, go on with --resume" in err and "Traceback" not in err
    assert checkpoints.load(RunFiles(out).last).progress.step == 5
    pretraining.run(settings(store, out, resume=True))
    pretraining.run(settings(store, tmp_path / "whole"))
    assert_same_weights(out, tmp_path / "whole")
