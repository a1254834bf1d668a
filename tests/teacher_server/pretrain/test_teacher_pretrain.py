"""Pretraining: learning what can be learned, repeatability, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.teacher_files import ROAD_CELL, circular_trips, write_store
from torch.nn import functional

from shared import config, teacher_file
from shared.errors import ConfigError, DataError, FileFormatError, ReportableError, TrainingError
from shared.store import Store
from teacher_server.lmtad import model
from teacher_server.pretrain import run as pretrain
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.corpus import draw_spans, make_batch, make_batches, read_corpus
from teacher_server.pretrain.epochs import find_architecture
from teacher_server.pretrain.layout import RunFiles
from teacher_server.pretrain.trainer import HeldOut, Trainer, learning_rate


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store", {"train": circular_trips(300, 0), "val": circular_trips(50, 1)})


def settings(store: Path, **changes: Any) -> PretrainConfig:
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "batch_tokens": 256, "warmup_steps": 5, "epochs": 8}
    values = {"data": store, "out": store.parent / "teacher", "device": "cpu", "threads": 1, "learning_rate": 1e-2}
    return PretrainConfig.model_validate(values | small | changes)


def test_a_teacher_learns_what_is_certain(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(settings(store))
    result = json.loads(capsys.readouterr().out)
    header, weights = teacher_file.read(store.parent / "teacher")
    vocabulary = header.tokeniser.vocabulary
    lmtad = model.load(header, weights)
    token = vocabulary.token(ROAD_CELL)
    for history, following in [([3, 4], 5), ([5, 6], 7), ([7, 0], 1), ([0, 1, 2, 3, 4, 5], 6)]:
        tokens = torch.tensor([[vocabulary.sot, *token[history]]])
        assert int(lmtad(tokens)[0, -1, : vocabulary.cells].argmax()) == token[following]
    assert result["next_cell_accuracy"] > 0.85
    assert result["held_out_loss"] < 0.7
    assert header.provenance["held_out_loss"] == result["held_out_loss"]
    assert header.provenance["store_fingerprint"] == "f00d"
    assert header.tokeniser.fingerprint == Store(store).tokeniser.fingerprint
    assert header.architecture["block_size"] == 21
    assert result["epochs"] == 8


def test_a_log_in_a_file_holds_lines_and_no_progress_bar(
    store: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    pretrain.run(settings(store, epochs=1))
    written = capfd.readouterr().err
    assert "\r" not in written and "step/s" not in written
    said = caplog.messages
    assert said[0].startswith("settings: data=") and "epochs=1" in said[0]
    assert said[-3].startswith("epoch 1/1: train") and said[-2].startswith("next road among the successors")
    assert said[-1].startswith("next: teacher-server serve --teacher ")


@pytest.mark.parametrize("more", [{}, {"epochs": 100, "max_steps": 2}])
def test_a_warm_up_as_long_as_the_run_is_warned_of(
    store: Path, caplog: pytest.LogCaptureFixture, more: dict[str, int]
) -> None:
    found = []
    for steps in (1, 500):
        caplog.clear()
        pretrain.run(settings(store, overwrite=True, **{"epochs": 1, "warmup_steps": steps, **more}))
        found.append(any("the learning rate rises in all of about" in message for message in caplog.messages))
    assert found == [False, True]


def test_the_held_out_loss_is_that_of_the_file(store: Path) -> None:
    pretrain.run(settings(store, epochs=2))
    header, weights = teacher_file.read(store.parent / "teacher")
    lmtad, vocabulary = model.load(header, weights), header.tokeniser.vocabulary
    losses, hits = [], []
    for trip in circular_trips(50, 1):
        tokens = [vocabulary.sot, *vocabulary.token(ROAD_CELL)[trip].tolist(), vocabulary.eot]
        logits = lmtad(torch.tensor([tokens[:-1]]))[0].double()
        losses += (logits.logsumexp(-1) - logits[range(len(trip) + 1), tokens[1:]]).tolist()
        hits += (logits[:-1, : vocabulary.cells].argmax(-1).numpy() == tokens[1:-1]).tolist()
    assert header.provenance["held_out_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert header.provenance["next_cell_accuracy"] == pytest.approx(np.mean(hits), abs=1e-9)


def test_a_run_has_the_bits_of_the_plain_loop(store: Path) -> None:
    """Whatever surrounds it: checkpoints, micro-batches and ranks cost a run of one process on a CPU no bit."""
    made = settings(store, epochs=3, dropout=0.1)
    opened = Store(store)
    vocabulary, train = opened.tokeniser.vocabulary, read_corpus(opened, "train")
    torch.manual_seed(made.seed)
    rng = np.random.default_rng(made.seed)
    lmtad = model.LMTAD(find_architecture(made, vocabulary, train), made.dropout)
    weights = list(lmtad.parameters())
    decayed = [{"params": [w for w in weights if w.dim() >= 2], "weight_decay": made.weight_decay}]
    decayed += [{"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(decayed, betas=(made.beta1, made.beta2), fused=True)
    step = 0
    for epoch in range(made.epochs):
        spans = draw_spans(train, lmtad.architecture.block_size - 1, made.crop_probability, rng)
        batches = make_batches(spans.lengths + 1, made.batch_tokens, rng)
        for number, trips in enumerate(batches):
            inputs, targets = map(torch.from_numpy, make_batch(train, spans, trips, vocabulary))
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(made, step, (epoch + number / len(batches)) / made.epochs)
            optimiser.zero_grad()
            logits = lmtad(inputs).flatten(0, 1)
            functional.cross_entropy(logits, targets.flatten(), ignore_index=vocabulary.pad).backward()
            torch.nn.utils.clip_grad_norm_(weights, made.grad_clip)
            optimiser.step()
            step += 1
    pretrain.run(made)
    header, found = teacher_file.read(store.parent / "teacher")
    assert header.provenance["best_epoch"] == made.epochs, "the last weights are those that are written"
    for name, array in lmtad.weights().items():
        assert np.array_equal(array, found[name]), name


def test_a_seed_repeats_a_run(store: Path) -> None:
    revisions = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        pretrain.run(settings(store, epochs=2, seed=seed, out=store.parent / name))
        revisions.append(teacher_file.read_header(store.parent / name).revision)
    assert revisions[0] == revisions[1] != revisions[2]


def test_steps_end_the_run(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pretrain.run(settings(store, max_steps=3))
    assert json.loads(capsys.readouterr().out)["steps"] == 3


def test_the_best_weights_are_kept(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs, of which the second is made out to be the best."""
    seen: list[tuple[float, np.ndarray]] = []

    def held_out(trainer: Trainer, _: Any) -> HeldOut:
        loss = [3.0, 1.0, 2.0][len(seen)]
        seen.append((loss, trainer.model.weights()["transformer.wte.weight"].copy()))
        return HeldOut(loss, 0.5)

    monkeypatch.setattr(Trainer, "held_out", held_out)
    pretrain.run(settings(store, epochs=3))
    header, weights = teacher_file.read(store.parent / "teacher")
    assert (header.provenance["best_epoch"], header.provenance["held_out_loss"]) == (2, 1.0)
    assert np.array_equal(weights["transformer.wte.weight"], seen[1][1])
    assert not np.array_equal(weights["transformer.wte.weight"], seen[2][1])


def test_an_existing_file_is_replaced_only_on_request(store: Path) -> None:
    (store.parent / "teacher").write_text("mine")
    with pytest.raises(ReportableError, match="overwrite=true"):
        pretrain.run(settings(store))
    assert (store.parent / "teacher").read_text() == "mine"
    pretrain.run(settings(store, max_steps=1, overwrite=True))
    assert teacher_file.read_header(store.parent / "teacher").revision


def test_a_loss_that_is_not_finite_ends_the_run(store: Path) -> None:
    with pytest.raises(TrainingError, match="lower learning_rate"):
        pretrain.run(settings(store, learning_rate=1e38, warmup_steps=0))
    assert not (store.parent / "teacher").exists()
    assert not RunFiles(store.parent / "teacher").last.exists(), "a checkpoint of a run that cannot go on"


@pytest.mark.parametrize("empty", ["train", "val"])
def test_empty_splits_are_reported(tmp_path: Path, empty: str) -> None:
    trips: dict[str, list[list[int]]] = {"train": circular_trips(5, 0), "val": circular_trips(5, 0), empty: [[]]}
    with pytest.raises(DataError, match=f"the {empty} split has no trips"):
        pretrain.run(settings(write_store(tmp_path / "store", trips)))


def test_tokens_outside_the_vocabulary_are_reported(store: Path) -> None:
    np.save(store / "network" / "road_token.npy", np.full(8, 7, np.int32))
    with pytest.raises(FileFormatError, match="road_token does not fit"):
        pretrain.run(settings(store))


def test_heads_must_divide_the_width(store: Path) -> None:
    with pytest.raises(ConfigError, match="n_embd 16 is not a multiple of n_head 3"):
        config.validate(PretrainConfig, {"data": store, "out": "x", "n_embd": 16, "n_head": 3})


@pytest.mark.parametrize(("block_size", "expected"), [(None, 16), (9, 9)])
def test_the_block_is_bounded(store: Path, block_size: int | None, expected: int) -> None:
    pretrain.run(settings(store, max_steps=2, block_size=block_size, max_block_size=16))
    assert teacher_file.read_header(store.parent / "teacher").architecture["block_size"] == expected


def test_learning_rate_warms_up_and_falls() -> None:
    schedule = settings(Path("s"), learning_rate=1.0, min_learning_rate=0.1, warmup_steps=10)
    assert learning_rate(schedule, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(schedule, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(schedule, 50, 0.5) == pytest.approx(0.55)
    assert learning_rate(schedule, 99, 1.0) == pytest.approx(0.1)
