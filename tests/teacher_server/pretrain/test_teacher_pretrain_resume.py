"""A run that is interrupted, wherever, and resumed is the run that nothing has interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from support.teacher_files import circular_trips, write_store

from shared import files, subset, teacher_file
from shared.errors import CompatibilityError, ConfigError, FileFormatError
from shared.store import Store
from shared.training.stop import StopSignals
from teacher_server.lmtad.model import LMTAD
from teacher_server.pretrain import checkpoint as checkpoints
from teacher_server.pretrain import run as pretraining
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.layout import RunFiles
from teacher_server.pretrain.session import Session
from teacher_server.pretrain.trainer import HeldOut, Trainer

SMALL: dict[str, Any] = {
    "n_layer": 1, "n_head": 2, "n_embd": 8, "batch_tokens": 128, "warmup_steps": 2, "epochs": 3, "device": "cpu",
    "threads": 1, "learning_rate": 1e-2, "dropout": 0.2, "candidate_trips": 0,
}  # fmt: skip
QUIET = {"log": {"every": 2}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("circle")
    return write_store(folder / "store", {"train": circular_trips(45, 0), "val": circular_trips(9, 1)})


def settings(store: Path, out: Path, **changes: Any) -> PretrainConfig:
    return PretrainConfig.model_validate({"data": store, "out": out, **SMALL, **QUIET, **changes})


def interrupted(monkeypatch: pytest.MonkeyPatch, settings: PretrainConfig, at: int, where: str) -> None:
    """Runs, and ends the run at its step of that number: between two steps, or in the midst of one."""
    with monkeypatch.context() as patched:
        if where == "between":
            patched.setattr(Session, "_check_wishes", _wishing(Session._check_wishes, at))
        else:
            patched.setattr(LMTAD, "forward", _failing(LMTAD.forward, at))
        with pytest.raises(KeyboardInterrupt):
            pretraining.run(settings)


def _wishing(plain: Callable[[Session], None], at: int) -> Callable[[Session], None]:
    def check(session: Session) -> None:
        session._around.stop.requested = session.progress.step == at
        plain(session)

    return check


def _failing(plain: Callable[[LMTAD, Any], Any], at: int) -> Callable[[LMTAD, Any], Any]:
    calls = 0

    def forward(model: LMTAD, tokens: Any) -> Any:
        nonlocal calls
        calls += 1
        logits = plain(model, tokens)  # random numbers are drawn
        if calls > at:
            raise KeyboardInterrupt
        return logits

    return forward


def left(out: Path) -> tuple[str, list[dict[str, float]], dict[str, Any]]:
    """What a finished run leaves: the revision of the weights, its records without timings, its result."""
    lines = RunFiles(out).metrics.read_text().splitlines()
    records = [{k: v for k, v in json.loads(line).items() if not k.startswith("perf/")} for line in lines]
    result = json.loads(RunFiles(out).summary.read_text())["result"]
    return teacher_file.read_header(out).revision, records, {**result, "out": "", "seconds": 0}


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_run_interrupted_between_any_two_steps_is_the_undisturbed_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    changes = {"dtype": dtype, "epochs": 3 if dtype == "float32" else 2}
    pretraining.run(settings(store, tmp_path / "whole", **changes))
    whole = left(tmp_path / "whole")
    assert whole[2]["steps"] > 9
    for step in range(whole[2]["steps"] + 1):
        out = tmp_path / f"cut{step}"
        interrupted(monkeypatch, settings(store, out, **changes), step, "between")
        assert not out.exists() and checkpoints.load(RunFiles(out).last).progress.step == step
        pretraining.run(settings(store, out, resume=True, **changes))
        assert left(out) == whole, step
        assert not RunFiles(out).last.parent.exists(), "checkpoints of a finished run"


@pytest.mark.parametrize("call", range(18))
def test_a_run_interrupted_within_a_step_or_a_measurement_is_the_undisturbed_one(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """The 18 forward passes of two epochs, three of each on validation trips; 12 micro-batches in 6 steps."""
    changes = {"epochs": 2, "micro_batch_tokens": 80, "batch_tokens": 200}
    pretraining.run(settings(store, tmp_path / "whole", **changes))
    interrupted(monkeypatch, settings(store, tmp_path / "cut", **changes), call, "within")
    pretraining.run(settings(store, tmp_path / "cut", resume=True, **changes))
    assert left(tmp_path / "cut") == left(tmp_path / "whole")


def test_steps_that_end_a_run_within_an_epoch_are_resumed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretraining.run(settings(store, tmp_path / "whole", max_steps=6))
    for step in range(7):
        out = tmp_path / f"cut{step}"
        interrupted(monkeypatch, settings(store, out, max_steps=6), step, "between")
        pretraining.run(settings(store, out, max_steps=6, resume=True))
        assert left(out) == left(tmp_path / "whole")


def test_checkpoints_change_nothing_and_a_damaged_one_is_passed_over(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretraining.run(settings(store, tmp_path / "whole"))
    often = {"checkpoint_every": 1, "keep_checkpoints": 3}
    out = tmp_path / "cut"
    interrupted(monkeypatch, settings(store, out, **often), 7, "between")
    last = RunFiles(out).last
    assert sorted(path.name for path in last.parent.iterdir()) == ["last.1.pt", "last.2.pt", "last.pt"]
    os.truncate(last, last.stat().st_size // 2)
    (last.parent / ".last.pt.x1y2").write_bytes(b"half")
    pretraining.run(settings(store, out, resume=True, **often))
    assert "last.pt is damaged" in caplog.text and "last.1.pt, 6 steps done" in caplog.text
    assert left(out)[0::2] == left(tmp_path / "whole")[0::2]
    assert [record["step"] for record in left(out)[1]] == [record["step"] for record in left(tmp_path / "whole")[1]]


def test_time_makes_a_checkpoint_due(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    plain = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda path, c, keep: (saved.append(c.progress.step), plain(path, c, keep))
    )
    pretraining.run(settings(store, tmp_path / "never", checkpoint_minutes=0, max_steps=4))
    assert saved == [4], "only the end"
    saved.clear()
    pretraining.run(settings(store, tmp_path / "always", checkpoint_minutes=1e-9, max_steps=4))
    assert saved[:4] == [0, 1, 2, 3]


def test_a_finished_run_has_nothing_left_to_do(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretraining.run(settings(store, tmp_path / "t"))
    before = (tmp_path / "t").read_bytes()
    first = capsys.readouterr().out
    monkeypatch.setattr(Session, "train", None)
    pretraining.run(settings(store, tmp_path / "t", resume=True))
    assert capsys.readouterr().out == first and (tmp_path / "t").read_bytes() == before
    (tmp_path / "t").unlink()
    with pytest.raises(ConfigError, match=r"finished, and its teacher file .* is gone"):
        pretraining.run(settings(store, tmp_path / "t", resume=True))
    RunFiles(tmp_path / "t").summary.write_text('{"result": 3}')
    with pytest.raises(FileFormatError, match=r"summary.json is damaged"):
        pretraining.run(settings(store, tmp_path / "t", resume=True))


def test_a_run_killed_after_its_teacher_file_writes_the_same_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(files, "write_json", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pretraining.run(settings(store, tmp_path / "t"))
    revision = teacher_file.read_header(tmp_path / "t").revision
    pretraining.run(settings(store, tmp_path / "t", resume=True))
    assert left(tmp_path / "t")[0] == revision


def test_a_run_is_neither_replaced_nor_resumed_as_another(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "t"
    interrupted(monkeypatch, settings(store, out), 3, "between")
    with pytest.raises(ConfigError, match=r"t\.run holds a run; go on with --resume, .* overwrite=true"):
        pretraining.run(settings(store, out))
    with pytest.raises(
        ConfigError,
        match=r"other settings: seed is \d+ there, 4 here; n_embd is \d+ there, 16 here\. Give it the settings",
    ):
        pretraining.run(settings(store, out, resume=True, n_embd=16, seed=4))
    other = write_store(tmp_path / "store", {"train": circular_trips(5, 0), "val": circular_trips(5, 1)})
    manifest = json.loads((other / "store.json").read_text())
    (other / "store.json").write_text(json.dumps(manifest | {"fingerprint": "beef"}))
    finer = write_store(tmp_path / "finer", {"train": circular_trips(45, 0), "val": circular_trips(9, 1)})
    cells = np.load(finer / "network" / "occupied_cells.npy")
    np.save(finer / "network" / "occupied_cells.npy", cells + (cells == cells[-1]))  # the last one beside where it was
    for path in (other, finer):
        with pytest.raises(CompatibilityError, match="trained on another store, or other cells"):
            pretraining.run(settings(path, out, resume=True))
    (RunFiles(out).folder / "notes.txt").write_text("mine")
    pretraining.run(settings(store, out, overwrite=True, seed=4))
    assert left(out)[2]["steps"] > 9 and (RunFiles(out).folder / "notes.txt").read_text() == "mine"


def test_a_run_of_a_version_without_a_setting_is_resumed_with_its_default(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dumped = PretrainConfig.model_dump

    def former(settings: PretrainConfig, **how: Any) -> dict[str, Any]:
        return {key: value for key, value in dumped(settings, **how).items() if key != "train_trips"}

    with monkeypatch.context() as patched:
        patched.setattr(PretrainConfig, "model_dump", former)
        interrupted(monkeypatch, settings(store, tmp_path / "a"), 3, "between")
    with pytest.raises(ConfigError, match="other settings: train_trips is 0 there, 5 here"):
        pretraining.run(settings(store, tmp_path / "a", resume=True, train_trips=5))
    pretraining.run(settings(store, tmp_path / "a", resume=True))
    pretraining.run(settings(store, tmp_path / "b"))
    assert left(tmp_path / "a") == left(tmp_path / "b")


def test_a_teacher_of_some_trips_has_seen_those_that_the_student_is_given(tmp_path: Path) -> None:
    trips, val = circular_trips(45, 0), circular_trips(9, 1)
    store = write_store(tmp_path / "store", {"train": trips, "val": val})
    chosen = subset.choose(Store(store).trips("train"), 20, 3, "train_trips", "training")
    assert len(chosen) == 20
    less = write_store(tmp_path / "less", {"train": [trips[trip] for trip in chosen], "val": val})
    pretraining.run(settings(store, tmp_path / "a", train_trips=20, sample_seed=3))
    pretraining.run(settings(less, tmp_path / "b"))
    assert left(tmp_path / "a")[:2] == left(tmp_path / "b")[:2]
    with pytest.raises(ConfigError, match="train_trips is 46, but the store has 45 training trips"):
        pretraining.run(settings(store, tmp_path / "c", train_trips=46))
    assert not (tmp_path / "c").exists() and not RunFiles(tmp_path / "c").folder.exists()


def test_without_a_checkpoint_a_resumed_run_begins(store: Path, tmp_path: Path) -> None:
    pretraining.run(settings(store, tmp_path / "a"))
    pretraining.run(settings(store, tmp_path / "b", resume=True))
    assert left(tmp_path / "a") == left(tmp_path / "b")


@pytest.mark.parametrize("spoil", ["optimiser", "random", "model", "best", "progress", "order", "format", "code"])
def test_what_is_no_checkpoint_is_an_error_that_says_so(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    out = tmp_path / "t"
    interrupted(monkeypatch, settings(store, out), 3, "between")
    path = RunFiles(out).last
    values = torch.load(path, weights_only=True)
    spoiled: dict[str, Any] = {
        "optimiser": {"state": {}},
        "random": {},
        "model": {},
        "best": {"w": torch.zeros(1)},
        "order": {"a": 1},
        "progress": {"step": "3"},
    }
    values |= {spoil: spoiled.get(spoil, "other")} if spoil != "code" else {"store": Path("x")}
    torch.save(values, path)
    with pytest.raises(FileFormatError):
        pretraining.run(settings(store, out, resume=True))


def held_out_losses(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> list[torch.Tensor]:
    """Makes the held-out losses of epochs out; the weights at each."""
    seen: list[torch.Tensor] = []

    def held_out(trainer: Trainer, _: Any) -> HeldOut:
        seen.append(trainer.model.transformer.wte.weight.detach().clone())
        return HeldOut(losses[len(seen) - 1], 0.5)

    monkeypatch.setattr(Trainer, "held_out", held_out)
    return seen


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 6)])
def test_patience_ends_a_run_with_its_best_weights(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int, epochs: int
) -> None:
    seen = held_out_losses(monkeypatch, [3.0, 2.0, 2.5, 1.0, 1.0, 4.0])
    pretraining.run(settings(store, tmp_path / "t", epochs=6, patience=patience))
    best = {3: 2, 6: 4}[epochs]
    header, weights = teacher_file.read(tmp_path / "t")
    assert len(seen) == epochs and header.provenance["best_epoch"] == best
    assert torch.equal(torch.from_numpy(weights["transformer.wte.weight"]), seen[best - 1])


def test_a_resumed_run_has_patience_left(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    seen = held_out_losses(monkeypatch, losses)
    pretraining.run(settings(store, tmp_path / "whole", epochs=6, patience=2))
    steps = left(tmp_path / "whole")[2]["steps"]
    assert len(seen) == 3
    del seen[:]
    out = tmp_path / "cut"
    interrupted(monkeypatch, settings(store, out, epochs=6, patience=2), steps - 1, "between")
    pretraining.run(settings(store, out, epochs=6, patience=2, resume=True))
    assert left(out) == left(tmp_path / "whole")


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(store: Path, tmp_path: Path, number: signal.Signals) -> None:
    """And no progress bar in what is no terminal."""
    changes = [f"{name}={value}" for name, value in SMALL.items() if name != "epochs"] + ["log.every=1"]
    command = [sys.executable, "-m", "teacher_server", "pretrain", "--data", store, "--out", tmp_path / "cut"]
    process = subprocess.Popen(
        [*map(str, command), *changes, "epochs=100000"], cwd=REPOSITORY, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        give_up, metrics = time.monotonic() + 120, RunFiles(tmp_path / "cut").metrics
        while not metrics.exists() or len(metrics.read_text().splitlines()) < 60:
            assert time.monotonic() < give_up and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130 and out == ""
    step = checkpoints.load(RunFiles(tmp_path / "cut").last).progress.step
    assert f"interrupted; checkpoint at step {step}, go on with --resume" in err
    assert "\r" not in err and "it/s" not in err and "Traceback" not in err
    assert "tokens/s: " in err and "to go, until about" in err


def test_signals_are_the_session_s_only_while_it_trains(store: Path, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    pretraining.run(settings(store, tmp_path / "t", max_steps=1))
    assert signal.getsignal(signal.SIGTERM) is before and StopSignals().requested is False
