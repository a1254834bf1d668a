"""A teacher's accuracy on the students' candidates, position by position as the definition says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.fake_wandb import FakeWandb
from support.teacher_files import ROAD_CELL, SUCCESSORS, circular_trips, write_store

from shared import teacher_file
from shared.errors import ConfigError, FileFormatError
from shared.store import Store
from teacher_server.lmtad.model import LMTAD, Architecture
from teacher_server.pretrain import candidates
from teacher_server.pretrain import run as pretraining
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.pretrain.layout import RunFiles

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Trips of three roads and more, and one of a single road, which has no step."""
    trips = [*circular_trips(12, 1), [5]]
    return Store(write_store(tmp_path / "store", {"train": circular_trips(20, 0), "val": trips}))


def lmtad(store: Store, block_size: int) -> LMTAD:
    torch.manual_seed(5)
    size = store.tokeniser.vocabulary.size
    made = LMTAD(Architecture(n_layer=2, n_head=2, n_embd=16, block_size=block_size, vocab_size=size, bias=False))
    torch.nn.init.normal_(made.transformer.wte.weight, std=1.0)
    return made.eval()


def by_definition(model: LMTAD, store: Store, window: int) -> float:
    """Asks for one position after the other."""
    token, sot = store.road_token.tolist(), store.tokeniser.vocabulary.sot
    block, chances = model.architecture.block_size, []
    trips = store.trips("val")
    for trip in range(len(trips)):
        roads = trips.roads[trips.offsets[trip] : trips.offsets[trip + 1]].tolist()
        for step in range(len(roads) - 1):
            history = [token[road] for road in roads[: step + 1]]
            context = [sot, *history[-min(window or block - 1, block - 1) :]]
            with torch.no_grad():
                logits = model(torch.tensor([context]))[0, -1]
            cells = [token[road] for road in SUCCESSORS[roads[step]].tolist()]
            named = max(cells, key=lambda cell: float(logits[cell]))
            chances.append((named == token[roads[step + 1]]) / cells.count(named))
    return float(np.mean(chances))


@pytest.mark.parametrize("window", [0, 1, 3, 50])
@pytest.mark.parametrize("block_size", [6, 25])
def test_accuracy_is_that_of_the_definition(store: Store, window: int, block_size: int) -> None:
    model, steps = lmtad(store, block_size), candidates.read_steps(store, 100)
    expected = by_definition(model, store, window)
    assert 0.05 < expected < 0.95
    for tokens in (4, 60, 10_000):
        found = candidates.accuracy(model, steps, store.tokeniser.vocabulary.sot, window, tokens, CPU)
        assert found == pytest.approx(expected, abs=1e-12)


def test_candidates_in_one_cell_are_a_guess(tmp_path: Path) -> None:
    """Both successors of road 0 are in the cell that follows."""
    assert len(set(ROAD_CELL[SUCCESSORS[0]])) == 1
    store = Store(write_store(tmp_path / "store", {"train": [[0, 1]], "val": [[0, 1], [0, 2]]}))
    steps = candidates.read_steps(store, 2)
    assert candidates.accuracy(lmtad(store, 9), steps, store.tokeniser.vocabulary.sot, 4, 99, CPU) == 0.5


def test_trips_without_a_step_have_no_accuracy(tmp_path: Path) -> None:
    store = Store(write_store(tmp_path / "store", {"train": [[0, 1]], "val": [[3], [4]]}))
    model, steps = lmtad(store, 9), candidates.read_steps(store, 2)
    assert candidates.measure(model, steps, store.tokeniser.vocabulary.sot, (4, 0), 99, CPU) == {"4": None, "0": None}


def test_trips_are_taken_evenly(store: Store) -> None:
    val = store.trips("val")
    few = candidates.read_steps(store, 3)
    expected = [trip for trip in (0, 6, 12) if val.lengths[trip] > 1]
    assert len(few.label) == sum(int(val.lengths[trip]) - 1 for trip in expected)


def test_a_store_without_successors_is_refused_before_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(store.path / "network" / "successor_offsets.npy", np.arange(3))
    with pytest.raises(FileFormatError, match="successors do not belong to the roads"):
        pretraining.run(PretrainConfig(data=store.path, out=tmp_path / "t", device="cpu"))
    (store.path / "network" / "successors.npy").unlink()
    with pytest.raises(FileFormatError, match="run `prepare` again"):
        pretraining.run(PretrainConfig(data=store.path, out=tmp_path / "t", device="cpu"))


def small(store: Store, out: Path, **changes: object) -> PretrainConfig:
    values = {"n_layer": 1, "n_head": 2, "n_embd": 16, "epochs": 2, "device": "cpu", "threads": 1, "dropout": 0.0}
    return PretrainConfig.model_validate({"data": store.path, "out": out, "batch_tokens": 64, **values, **changes})


def test_a_run_ends_with_the_teacher_beside_the_floors(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    pretraining.run(small(store, tmp_path / "t", candidate_windows=(2, 0)))
    result = json.loads(capsys.readouterr().out)
    header, weights = teacher_file.read(tmp_path / "t")
    model = LMTAD.from_weights(Architecture.from_dict(header.architecture), weights)
    expected = {str(window): by_definition(model, store, window) for window in (2, 0)}
    assert result["next_road_accuracy"] == pytest.approx(expected, abs=1e-12)
    assert header.provenance["next_road_accuracy"] == result["next_road_accuracy"]
    assert result["floors"] == store.manifest["floors"] and len(result["floors"]) == 3
    assert f"window 2 {100 * expected['2']:.1f} %, whole history" in caplog.text
    assert (
        "; rule: the candidate nearest to the destination 25.0 %; rules counted in the whole training split: "
        "the most frequent next road 50.0 %, the most frequent next road after the last two 75.0 %"
    ) in caplog.text
    is_beaten = max(expected.values()) < 0.5
    assert ("the most frequent next road is right more often than this teacher" in caplog.text) == is_beaten
    cases: list[tuple[dict[str, float | None], bool]] = [
        ({"4": 0.49, "0": None}, True), ({"4": 0.51, "0": 0.1}, False), ({"4": None}, False),
    ]  # fmt: skip
    for accuracies, is_worse in cases:
        assert bool(pretraining._worse_than_counting(accuracies, result["floors"])) == is_worse


def test_what_a_run_leaves_beside_its_teacher(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    for name in ("WANDB_MODE", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    log = {"every": 2, "tensorboard": True, "wandb": "offline", "wandb_name": "n"}
    pretraining.run(small(store, tmp_path / "t", epochs=8, log=log))
    run = RunFiles(tmp_path / "t")
    left = {path.name for path in run.folder.iterdir()}
    assert left == {"config.yaml", "metrics.jsonl", "summary.json", "tensorboard", "wandb_run.json"}
    records = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    training = [record for record in records if "train/loss" in record]
    assert [record["step"] for record in training] == list(range(2, 2 * len(training) + 1, 2))
    assert training[-1].keys() == {
        "step", "train/loss", "train/learning_rate", "train/gradient_norm", "perf/tokens_per_s", "perf/seconds_left",
    }  # fmt: skip
    assert [record.keys() for record in records if "val/loss" in record] == [{"step", "val/loss", "val/accuracy"}] * 8
    assert [step for step, _ in wandb.logged] == [record["step"] for record in records]
    assert wandb.last["name"] == "n" and wandb.last["config"]["epochs"] == 8
    assert next((run.folder / "tensorboard").iterdir()).stat().st_size > 100
    assert [message for message in caplog.messages if "tokens/s: " in message and " to go, until about " in message]
    assert training[-1]["perf/seconds_left"] < training[5]["perf/seconds_left"] * 2


def test_tensorboard_that_is_not_there_is_said_before_training(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"log\.tensorboard=true needs TensorBoard: pip install tensorboard"):
        pretraining.run(small(store, tmp_path / "t", log={"tensorboard": True}))
    assert not RunFiles(tmp_path / "t").folder.exists()
