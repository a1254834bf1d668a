"""A run that is to train on: what is refused and why, and what `--continue-to` does instead."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from support.fakes import FakeTeacher
from support.random_city import write_random_sample, write_random_store
from support.runs import assert_same_bits, records

from shared import config
from shared.errors import ConfigError
from shared.store import Store
from student_trainer.__main__ import main as _main
from student_trainer.evaluate import training
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train import resume
from student_trainer.train.config import TrainConfig
from student_trainer.train.optim import learning_rate
from student_trainer.train.resume import find_checkpoint
from student_trainer.train.runtime import Runtime
from student_trainer.train.session import Session

SMALL = (
    "model.road_id_dim=8", "model.road_attr_dim=2", "optim.batch_size=8", "optim.learning_rate=3e-3",
    "batch.bucket_batches=2", "log.tensorboard=false", "log.every=1", "log.progress=false", "runtime.device=cpu",
    "runtime.threads=1", "seed=3",
)  # fmt: skip
Command = Callable[..., int]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


@pytest.fixture
def train(store: Store, monkeypatch: pytest.MonkeyPatch) -> Command:
    """`student-trainer train` on the store; returns the exit code."""

    def run(out: Path, *more: object) -> int:
        line = ["student-trainer", "train", "--data", store.path, "--out", out, *SMALL, *more]
        monkeypatch.setattr("sys.argv", list(map(str, line)))
        return _main()

    return run


def summary(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return found


def rates(out: Path) -> list[float]:
    """The learning rate of every step."""
    return [line["train/learning_rate"] for line in records(out) if "train/learning_rate" in line]


def test_a_run_is_continued_with_its_schedule_stretched(
    tmp_path: Path, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Epochs 1 and 2 are those of the run that was continued, to the bit; the rate then is that of four epochs."""
    out = tmp_path / "run"
    assert train(out, "optim.epochs=2") == 0
    steps = summary(out)["steps"]
    first = records(out)
    assert train(out, "optim.epochs=2", "--continue-to", 4) == 0
    told = capsys.readouterr().err
    assert "the schedule is stretched from 2 to 4 epochs: the learning rate goes from 0 to 0.00158 and then" in told
    found = summary(out)
    assert (found["steps"], found["last"]["epoch"]) == (2 * steps, 4)
    assert found["extended"] == [{"step": steps, "from_epochs": 2, "to_epochs": 4}]
    assert records(out)[: len(first)] == first
    optim = config.load(TrainConfig, "train", [out / "config.yaml"]).optim
    assert optim.epochs == 4
    short = optim.model_copy(update={"epochs": 2})
    expected = [learning_rate(step, steps, short) for step in range(steps)]
    expected += [learning_rate(step, 2 * steps, optim) for step in range(steps, 2 * steps)]
    np.testing.assert_allclose(rates(out), expected, rtol=1e-12)
    assert train(tmp_path / "whole", "optim.epochs=4") == 0
    ours, whole = (checkpoints.load(path / "checkpoints" / "last.pt").model for path in (out, tmp_path / "whole"))
    assert any(not torch.equal(ours[name], whole[name]) for name in ours)  # another run, as is said


def test_the_same_command_goes_on_with_what_was_continued(tmp_path: Path, train: Command, store: Store) -> None:
    """Stopped after the third epoch and started again, a continued run ends with the bits of an undisturbed one."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        assert train(out, "optim.epochs=2") == 0
    assert train(whole, "--continue-to", 4) == 0
    settings = config.load(TrainConfig, "train", [cut / "config.yaml"], ["continue_to=4"])
    stopped = resume.extended(settings)
    runtime = Runtime.of(stopped.runtime, torch.device("cpu"))
    session = Session(stopped, store, runtime, None, find_checkpoint(stopped, store))
    loop = session.epochs()
    next(loop)
    loop.close()
    assert not (cut / "summary.json").exists(), "the run has not finished"
    assert train(cut, "--continue-to", 4) == 0
    assert (cut / "summary.json").exists()
    contents = [checkpoints.load(out / "checkpoints" / "last.pt") for out in (whole, cut)]
    assert_same_bits(contents[0].model, contents[1].model)
    assert contents[0].progress == contents[1].progress


def test_a_continued_run_is_no_run_of_the_arm_of_so_many_epochs(tmp_path: Path, train: Command) -> None:
    """It was trained by another schedule, so its seeds are not averaged with theirs."""
    continued, whole, plain = (tmp_path / name for name in ("continued", "whole", "plain"))
    assert train(continued, "optim.epochs=1") == train(plain, "optim.epochs=1") == 0
    assert train(continued, "--continue-to", 2) == train(whole, "optim.epochs=2") == 0
    found = {out.name: training.of_run(out) for out in (continued, whole, plain)}
    settings = {name: known.settings for name, known in found.items() if known is not None}
    assert settings["continued"]["continue_to"] == 2
    assert "continue_to" not in settings["whole"] and "continue_to" not in settings["plain"]
    assert settings["continued"]["optim.epochs"] == settings["whole"]["optim.epochs"] == 2


@pytest.fixture(scope="module")
def trained(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    out = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["student-trainer", "train", f"--data={store.path}", f"--out={out}", *SMALL,
                                   "optim.epochs=2"])  # fmt: skip
        assert _main() == 0
    return out


REFUSED = {
    "more epochs": (
        ("--resume", "optim.epochs=5"),
        ("optim.epochs is 2 there, 5 here", "--continue-to 5 goes on to 5 epochs in all, with its schedule stretched"),
    ),
    "fewer epochs": (("--resume", "optim.epochs=1"), ("optim.epochs is 2 there, 1 here", "a run in another --out")),
    "several": (
        ("--resume", "optim.epochs=3", "seed=4", "distill.window=9"),
        ("seed is 3 there, 4 here", "distill.window is 4 there, 9 here", "optim.epochs is 2 there, 3 here",
         "a run has one set of settings from its first step to its last"),
    ),
    "continued to fewer": (
        ("--continue-to", "1"), ("trains for 2 epochs already; --continue-to takes that or more, not 1",),
    ),
    "continued with others": (
        ("--continue-to", "5", "optim.learning_rate=0.1"), ("optim.learning_rate is 0.003 there, 0.1 here",),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_settings_are_named_with_both_values(
    trained: Path, train: Command, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    more, parts = REFUSED[case]
    epochs = () if any("epochs" in text for text in more) else ("optim.epochs=2",)
    assert train(trained, *epochs, *more) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("student-trainer train: ")]
    for part in parts:
        assert part in line


def test_nothing_is_continued_where_nothing_is(
    tmp_path: Path, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "empty", "--continue-to", 4) == 2
    assert "has no checkpoint to continue; begin a run with optim.epochs instead" in capsys.readouterr().err


def test_a_run_that_was_continued_is_resumed_by_the_same_flag(
    tmp_path: Path, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", "optim.epochs=1") == 0
    assert train(tmp_path / "run", "--continue-to", 2) == 0
    assert train(tmp_path / "run", "--resume", "optim.epochs=2") == 2
    told = capsys.readouterr().err
    assert "continue_to is 2 there, 0 here" in told and "--continue-to 2 goes on" in told
    assert train(tmp_path / "run", "--continue-to", 2) == 0


def test_a_setting_that_an_older_version_lacked_is_no_change(trained: Path, store: Store) -> None:
    """Runs that were begun before there was a setting go on, if it is left as it was."""
    settings = config.load(TrainConfig, "train", [trained / "config.yaml"], ["resume=true"])
    path = trained / "checkpoints" / "last.pt"
    found = checkpoints.load(path)
    older = {key: value for key, value in found.config.items() if key != "continue_to"}
    resume._check_resumable(settings, store, checkpoints.Checkpoint(**{**vars(found), "config": older}))
    changed = settings.model_copy(update={"seed": 9})
    with pytest.raises(ConfigError, match="seed is 3 there, 9 here"):
        resume._check_resumable(changed, store, checkpoints.Checkpoint(**{**vars(found), "config": older}))


OLDER = {"target", "head", "time_factor", "schedule", "schedule_share"}
OLDER |= {"sampled_weight", "sampled_labels"}
"""Settings of distillation that there were not, when a run was one of an older version."""
FORMERLY = ("distill.target=history", "distill.head=0", "distill.schedule=constant", "distill.time_factor=1")


def make_older(out: Path, weight: float) -> None:
    """Makes of a run one that an older version has begun: as it has written its settings and its checkpoint."""
    path = out / "checkpoints" / "last.pt"
    values = torch.load(path, weights_only=True)
    old = {name: value for name, value in values["config"]["distill"].items() if name not in OLDER}
    values["config"]["distill"] = old | {"weight": weight}
    del values["config"]["batch"]["sampled"], values["config"]["optim"]["label_smoothing"]
    del values["distillation"], values["sampled"]
    torch.save({**values, "format": checkpoints.BEFORE[-1]}, path)
    (out / "config.yaml").write_text(yaml.safe_dump({"train": values["config"]}))


def begin(store: Store, out: Path, *more: str) -> None:
    """A run that stops after the first of its two epochs."""
    given = [*SMALL, "optim.epochs=2", f"data={store.path}", f"out={out}", "teacher=fake:1", *more]
    epochs = session_of(config.load(TrainConfig, "train", [], given), store).epochs()
    next(epochs)
    epochs.close()


def session_of(settings: TrainConfig, store: Store) -> Session:
    runtime = Runtime.of(settings.runtime, torch.device("cpu"))
    return Session(settings, store, runtime, FakeTeacher(), find_checkpoint(settings, store))


def test_weights_that_fade_are_stretched_with_the_schedule(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After one of two epochs, of four: half along the cosine before, a quarter now."""
    out = tmp_path / "run"
    begin(store, out)
    caplog.set_level("INFO")
    settings = config.load(TrainConfig, "train", [out / "config.yaml"], ["continue_to=4"])
    session_of(resume.extended(settings), store)
    (told,) = [message for message in caplog.messages if "share of distill.weight" in message]
    before, now = map(float, re.findall(r"from ([\d.]+) to ([\d.]+)", told)[0])
    assert 0.5 < before < 0.6 and now == pytest.approx((1 + math.cos(math.pi / 4)) / 2, abs=1e-3)


def test_a_run_of_an_older_version_is_not_resumed_with_new_defaults(store: Store, tmp_path: Path) -> None:
    """It names what is another now, the value that the old version had without a setting, and the way out."""
    out = tmp_path / "run"
    begin(store, out, *FORMERLY, "distill.weight=0.3")
    make_older(out, weight=0.3)
    with pytest.raises(ConfigError) as caught:
        find_checkpoint(config.load(TrainConfig, "train", [out / "config.yaml"], ["resume=true"]), store)
    told = str(caught.value)
    for part in (
        "distill.target is history there (of an older version), destination here",
        "distill.head is 0.0 there (of an older version), 1.0 here",
        "distill.schedule is constant there (of an older version), cosine here",
        "distill.time_factor is 1.0 there (of an older version), 1.25 here",
        "Give it the settings of its config.yaml and distill.target=history distill.schedule=constant distill.head=0.0",
    ):
        assert part in told
    for name in ("schedule_share", "sampled", "label_smoothing", "weight is"):
        assert name not in told


def test_a_run_that_mixed_in_sampled_trips_before_there_was_a_choice_did_so_throughout(
    store: Store, tmp_path: Path
) -> None:
    """And its labelled trips came once an epoch; one without sampled trips did what it does now."""
    out, found = tmp_path / "run", {}
    sampled = write_random_sample(tmp_path / "sampled", store)
    for name, more in (("alone", ()), ("mixed", (f"batch.sampled={sampled}",))):
        begin(store, out / name, *more)
        settings = config.load(TrainConfig, "train", [out / name / "config.yaml"], ["resume=true"])
        checkpoint = checkpoints.load(out / name / "checkpoints" / "last.pt")
        for key in ("labelled_passes", "sampled_share"):
            del checkpoint.config["batch"][key]
        found[name] = settings, checkpoint
    resume._check_resumable(found["alone"][0], store, found["alone"][1])
    with pytest.raises(ConfigError, match=r"Give it .* batch.labelled_passes=1 batch.sampled_share=1.0, w") as caught:
        resume._check_resumable(found["mixed"][0], store, found["mixed"][1])
    assert "batch.sampled_share is 1.0 there (of an older version), 0.0 here" in str(caught.value)


def test_a_run_goes_on_with_settings_that_a_new_one_may_not_have(store: Store, tmp_path: Path) -> None:
    """Older versions took some that have no effect; what the run was begun with decides."""
    out, given = tmp_path / "run", ("distill.sampled_weight=0.5",)
    with pytest.raises(ConfigError, match=r"give batch\.sampled=DIR"):
        begin(store, out, *given)
    with pytest.MonkeyPatch.context() as older:
        older.setattr(TrainConfig, "check_effects", lambda settings: None)
        begin(store, out, *given)
    settings = config.load(TrainConfig, "train", [out / "config.yaml"], ["resume=true"])
    session_of(settings, store).train()
    assert len(checkpoints.load(out / "checkpoints" / "last.pt").progress.history) == 2
    with pytest.raises(ConfigError, match=r"give batch\.sampled=DIR"):
        find_checkpoint(settings.model_copy(update={"out": tmp_path / "new"}), store)


@pytest.mark.parametrize("fades", [False, True])
def test_a_setting_that_is_gone_is_no_change_where_it_was_what_is_done_now(
    store: Store, tmp_path: Path, fades: bool
) -> None:
    """For a while there was a choice whether the head fades, and it did."""
    out = tmp_path / "run"
    begin(store, out)
    checkpoint = checkpoints.load(out / "checkpoints" / "last.pt")
    checkpoint.config["distill"]["head_fades"] = fades
    settings = config.load(TrainConfig, "train", [out / "config.yaml"], ["resume=true"])
    if not fades:
        resume._check_resumable(settings, store, checkpoint)
        return
    with pytest.raises(ConfigError, match=r"distill\.head_fades is True there, False here") as caught:
        resume._check_resumable(settings, store, checkpoint)
    assert "head_fades=" not in str(caught.value)


def test_with_what_its_version_did_it_goes_on_to_the_bit(store: Store, tmp_path: Path) -> None:
    """A checkpoint of the format before is read, and the run ends as one that was never interrupted."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    given = [*SMALL, "optim.epochs=2", f"data={store.path}", f"out={whole}", "teacher=fake:1", *FORMERLY]
    session_of(config.load(TrainConfig, "train", [], [*given, "distill.weight=0.3"]), store).train()
    begin(store, out, *FORMERLY, "distill.weight=0.3")
    make_older(out, weight=0.3)
    assert checkpoints.load(out / "checkpoints" / "last.pt").distillation == {}
    settings = config.load(TrainConfig, "train", [out / "config.yaml"], ["resume=true", *FORMERLY])
    session_of(settings, store).train()
    contents = [checkpoints.load(path / "checkpoints" / "last.pt") for path in (whole, out)]
    assert_same_bits(contents[0].model, contents[1].model)
    assert_same_bits(contents[0].optimizer, contents[1].optimizer)
    assert contents[0].progress == contents[1].progress


@pytest.mark.parametrize("key", ["distill.target=history", "distill.head=0", "distill.schedule=linear"])
def test_the_parts_of_a_distilled_run_stay_what_they_are(store: Store, tmp_path: Path, key: str) -> None:
    begin(store, tmp_path / "run")
    name, path = key.partition("=")[0], tmp_path / "run" / "config.yaml"
    with pytest.raises(ConfigError, match=rf"{name} is \S+ there, \S+ here"):
        find_checkpoint(config.load(TrainConfig, "train", [path], ["resume=true", key]), store)
