"""Which device a setting means, told from what torch sees; and what float32 means there."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.random_city import write_random_store

from shared.errors import ConfigError
from shared.store import Store
from shared.training.torch_ranks import Ranks
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import predictions as next_roads
from student_trainer.evaluate.config import EvaluateConfig
from student_trainer.model import device as devices
from student_trainer.model import upstream
from student_trainer.model.config import ModelConfig
from student_trainer.model.device import Seen, choose, float32_products, pick_device, share_out
from student_trainer.model.hoser import HOSER
from student_trainer.model.time_scale import TimeScale
from student_trainer.predict import positions as predictions
from student_trainer.predict import run as predict
from student_trainer.predict.config import PredictConfig
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train.config import RuntimeConfig, TrainConfig
from student_trainer.train.optim import Precision
from student_trainer.train.run import open_inputs
from student_trainer.tune import worker
from student_trainer.tune.config import TuneConfig

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("name", "devices", "expected"),
    [
        ("auto", 0, CPU),
        ("auto", 3, CUDA),
        ("cpu", 3, CPU),
        ("cuda", 1, CUDA),
        ("cuda:0", 1, CUDA),
        ("cuda:2", 3, torch.device("cuda", 2)),
    ],
)
def test_a_cuda_device_has_an_index(name: str, devices: int, expected: torch.device) -> None:
    """torch refuses to make one without the current one."""
    assert choose(name, Seen(devices)) == expected
    assert (expected.type == "cuda") == (choose(name, Seen(devices)).index is not None)


@pytest.mark.parametrize("name", ["abacus", "", "cuda:", "cuda:-1", "cuda:x", "cpu:1", "auto:0", "meta", "mps", "CUDA"])
def test_what_is_no_device_of_ours(name: str) -> None:
    with pytest.raises(ConfigError, match=f"^runtime.device={name} is no device; use auto, cpu, cuda or cuda:N$"):
        choose(name, Seen(1), setting="runtime.device")


@pytest.mark.parametrize(
    ("name", "seen", "message"),
    [
        ("cuda", Seen(0, False), "cuda is not here: this torch is built without CUDA; use device=cpu or auto"),
        ("cuda", Seen(0), "torch sees no CUDA device; use device=cpu or auto; CUDA_VISIBLE_DEVICES may hide some"),
        ("cuda:1", Seen(1), "torch sees one CUDA device, cuda:0; use device=cpu, auto or cuda:N below 1"),
        ("cuda:77", Seen(8), "torch sees 8 CUDA devices, cuda:0 to cuda:7; use device=cpu, auto or cuda:N below 8"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_what_is(name: str, seen: Seen, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        choose(name, seen)
    assert message in str(error.value) and f"device={name} is not here" in str(error.value)


def test_ranks_take_a_device_each_and_processes_share_them() -> None:
    taken = [choose("auto", Seen(2), local, world=4) for local in (0, 1)]
    assert taken == [torch.device("cuda", 0), torch.device("cuda", 1)]
    assert [share_out("auto", number, 2) for number in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert [share_out("cuda", 1, 2), share_out("cuda:0", 1, 2), share_out("cpu", 1, 2)] == ["cuda:1", "cuda:0", "cpu"]
    assert [share_out("auto", 1, devices) for devices in (0, 1)] == ["auto", "auto"]


@dataclasses.dataclass
class Machine:
    """A machine with CUDA devices, as far as torch is asked. It is as strict as torch about the current device."""

    current: list[torch.device]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    machine = Machine([])

    def set_device(device: torch.device) -> None:
        if device.index is None:
            raise ValueError("Expected a torch.device with a specified index")
        machine.current.append(device)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", set_device)
    return machine


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def device_of(settings: TrainConfig, ranks: Ranks) -> torch.device:
    with contextlib.ExitStack() as claimed:
        return open_inputs(settings, ranks, claimed).device


def test_a_run_starts_on_the_first_device_and_a_rank_on_its_own(machine: Machine, store: Store, tmp_path: Path) -> None:
    settings = TrainConfig.model_validate({"data": store.path, "out": tmp_path / "run"})
    assert device_of(settings, Ranks()) == CUDA
    assert device_of(settings, Ranks(1, 2, 1)) == torch.device("cuda", 1)
    assert machine.current == [CUDA, torch.device("cuda", 1)]
    on_cpu = settings.model_copy(update={"runtime": RuntimeConfig(device="cpu")})
    assert device_of(on_cpu, Ranks()) == CPU and len(machine.current) == 2
    with pytest.raises(ConfigError, match=r"^runtime\.device=cuda:2 is not here: torch sees 2 CUDA devices"):
        device_of(settings.model_copy(update={"runtime": RuntimeConfig(device="cuda:2")}), Ranks())


def test_every_job_with_a_device_makes_it_the_current_one(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, store: Store, tmp_path: Path
) -> None:
    """`predict` and `evaluate`, up to where they would need it."""
    network = RoadNetwork.load(store)
    weights = tmp_path / "weights.pth"
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2, mask_size=64), network)
    checkpoints.save_tensors(weights, upstream.export(model))

    class Reached(Exception):
        pass

    def moved(_: Any, device: torch.device) -> None:
        assert machine.current[-1] == device
        raise Reached

    monkeypatch.setattr(HOSER, "to", moved)
    settings = EvaluateConfig(data=store.path, trips=tmp_path, weights=weights, out=tmp_path, device="cuda:1")
    for job in (
        lambda: predict.run(PredictConfig(data=store.path, weights=weights, out=tmp_path / "a.npz", device="cuda:1")),
        lambda: next_roads.predict(settings, store, store.trips("val")),
    ):
        with pytest.raises(Reached):
            job()
    assert machine.current == [torch.device("cuda", 1)] * 2


def test_workers_of_a_study_have_a_device_each(machine: Machine) -> None:
    settings = TuneConfig.model_validate({"data": "d", "teacher": "t:1", "out": "o"})
    assert [worker.on_device(settings, number).train.runtime.device for number in (0, 1, 2)] == [
        "cuda:0", "cuda:1", "cuda:0",
    ]  # fmt: skip


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_holds_within_its_block_only() -> None:
    before = switches()
    with contextlib.suppress(KeyError), float32_products(CUDA, tf32=True):
        assert switches() == (True, True)
        with float32_products(CUDA, tf32=False):
            assert switches() == (False, False)
        with float32_products(CPU, tf32=False):
            assert switches() == (True, True)
        raise KeyError
    assert switches() == before
    for tf32 in (False, True):
        with Precision(RuntimeConfig(tf32=tf32, amp="off"), CUDA).float32_products():
            assert switches() == (tf32, tf32)
    assert switches() == before


def test_predictions_are_in_float32_whatever_trained_before(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    """Alone, and in a process whose training uses TF32: the same numerics."""
    network, seen = RoadNetwork.load(store), []
    model = HOSER(ModelConfig(road_id_dim=8, road_attr_dim=2), network).eval()
    embed = model.embed_network
    monkeypatch.setattr(model, "embed_network", lambda: [seen.append(switches()), embed()][1])
    answer = predictions.answers
    monkeypatch.setattr(predictions, "answers", lambda *asked: [seen.append(switches()), answer(*asked)][1])
    monkeypatch.setattr(predictions.Packed, "of", lambda batch, pinned: batch)  # it stays on the CPU
    monkeypatch.setattr(predictions._Built, "on", lambda built, device: built.packed)
    settings = PredictConfig(data=store.path, weights=Path("w"), out=Path("o.npz"), batch_size=64)
    said = []
    for tf32 in (False, True):
        with float32_products(CUDA, tf32):
            said.append(predictions.predict(model, network, store.trips("val"), TimeScale(0, 1), settings, CUDA))
            assert switches() == (tf32, tf32)
    assert seen == [(False, False)] * 4
    assert said[0]["logit"].size > 0
    assert all(np.array_equal(first, second) for first, second in zip(said[0].values(), said[1].values(), strict=True))


def test_numbers_are_read_and_tensors_moved() -> None:
    assert devices.read(torch.tensor([1.5, 2.0])) == [1.5, 2.0]
    assert devices.to_device(torch.ones(2), torch.device("meta")).device.type == "meta"
    assert pick_device("cpu") == CPU
