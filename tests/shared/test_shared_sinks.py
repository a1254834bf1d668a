"""TensorBoard and Weights & Biases are given values, and never decide whether a job lives."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY
from optuna.trial import TrialState
from support.fake_wandb import FakeWandb
from support.generated_trips import write_generated
from support.random_city import write_random_store
from support.trials import SMALL, phase_of, run_one, tune_settings
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from shared import sinks
from shared.errors import ConfigError
from shared.sinks import WANDB_FILE, Sinks, Wandb, WandbRun, check_wandb, wandb_mode
from shared.store import Store
from shared.training.torch_ranks import Ranks
from student_trainer.__main__ import main as _main
from student_trainer.train import run as training
from student_trainer.train.config import TrainConfig

TRAIN = (
    "model.road_id_dim=8", "model.road_attr_dim=2", "optim.epochs=2", "optim.batch_size=8", "runtime.device=cpu",
    "runtime.threads=1", "log.tensorboard=false", "log.every=1",
)  # fmt: skip
ONLINE = {"log": {**SMALL["log"], "wandb": "online"}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in, nothing is switched off."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / ".netrc"))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_random_store(tmp_path / "store", trips=40)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*argv: object) -> int:
        monkeypatch.setattr("sys.argv", ["student-trainer", *map(str, argv)])
        return _main()

    return run


def asked(mode: Wandb = "online") -> WandbRun:
    return WandbRun(asked=mode, project="p", name="n", config={"a": 1}, tags=("t",), group="g", job_type="j")


@pytest.mark.parametrize(
    ("setting", "variables", "mode"),
    [
        ("off", {"WANDB_MODE": "online"}, "disabled"),
        ("offline", {}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "run"}, "online"),
        ("online", {"WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "disabled"),
        ("offline", {"WANDB_MODE": "disabled"}, "disabled"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("online", {"WANDB_DISABLED": "false"}, "online"),
    ],
)
def test_settings_and_environment_must_both_allow(
    wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch, setting: Wandb, variables: dict[str, str], mode: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode(setting) == mode
    check_wandb(setting)
    assert wandb.logins == (mode == "online")


def test_who_is_not_logged_in_is_told_so(wandb: FakeWandb) -> None:
    wandb.is_logged_in = False
    with pytest.raises(
        ConfigError, match=r"not logged in; log in with `wandb login` or WANDB_API_KEY, or take log.wand"
    ):
        check_wandb("online")
    check_wandb("offline")
    wandb.failing = ("login", "teardown")
    with pytest.raises(ConfigError, match=r"cannot be used: login: network is unreachable; log in"):
        check_wandb("online")
    assert wandb.teardowns == 2


def test_a_directory_is_one_run(wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        Sinks(tmp_path, False, asked()).close()
    Sinks(tmp_path / "other", False, asked()).close()
    ids = [arguments["id"] for arguments in wandb.started]
    assert ids[0] == ids[1] != ids[2]
    assert json.loads((tmp_path / WANDB_FILE).read_text()) == {"id": ids[0]}
    assert {(arguments["resume"], arguments["reinit"]) for arguments in wandb.started} == {("allow", "create_new")}
    for damaged in ("", "[]", '{"id": 3}', '{"id": "a/b"}', "\\x00"):
        (tmp_path / WANDB_FILE).write_text(damaged)
        caplog.clear()
        Sinks(tmp_path, False, asked()).close()
        assert wandb.last["id"] not in ids
        ids.append(wandb.last["id"])
        assert [WANDB_FILE in record.getMessage() for record in caplog.records] == [True]


def test_all_that_is_asked_for_is_told(wandb: FakeWandb, tmp_path: Path) -> None:
    opened = Sinks(tmp_path, False, asked("offline"))
    opened.write(3, {"a": 1.0})
    opened.write(None, {"b": 2.0})
    opened.close()
    told = {"project": "p", "name": "n", "group": "g", "job_type": "j", "tags": ["t"], "config": {"a": 1}}
    told |= {"mode": "offline", "dir": str(tmp_path), "settings": {"finish_timeout": sinks.FINISH_SECONDS}}
    assert told.items() <= wandb.last.items()
    assert wandb.logged == [(3, {"a": 1.0}), (None, {"b": 2.0})]


@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_what_fails_is_said_once(
    wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture, failing: str
) -> None:
    wandb.failing = (failing,)
    opened = Sinks(tmp_path, True, asked(), after=0)
    for step in (1, 2, 3):
        opened.write(step, {"a": 1.0})
    opened.close()
    message = f"Weights & Biases failed ({failing}: network is unreachable); the job goes on without it"
    assert [record.getMessage() for record in caplog.records] == [message]
    assert list((tmp_path / "tensorboard").iterdir()), "the other sink has nothing"


def test_tensorboard_fails_as_gently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboard").write_text("in the way")
    opened = Sinks(tmp_path, True, asked("off"), after=0)
    opened.write(1, {"a": 1.0})
    opened.close()
    [record] = caplog.records
    assert record.getMessage().startswith("TensorBoard failed (")


def test_tensorboard_shows_values_and_drops_those_after_the_step_that_is_gone_on_with(tmp_path: Path) -> None:
    """As its own reader sees them; steps from 3 on were of an attempt that was killed."""
    for begin, end, after, value in ((1, 6, 0, 1.0), (3, 5, 2, 2.0)):
        opened = Sinks(tmp_path, True, asked("off"), after)
        for step in range(begin, end):
            opened.write(step, {"train/loss": value * step, "train/other": 0.5})
        opened.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert sorted(reader.Tags()["scalars"]) == ["train/loss", "train/other"]
    found = [(event.step, event.value) for event in reader.Scalars("train/loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 6.0), (4, 8.0)]


@pytest.mark.integration
@pytest.mark.parametrize("job", ["train", "evaluate", "tune"])
@pytest.mark.parametrize("trouble", ["not logged in", "no network"])
def test_nothing_is_claimed_before_it_is_known_to_work(
    wandb: FakeWandb, store: Store, tmp_path: Path, main: Callable[..., int], capsys: pytest.CaptureFixture[str],
    job: str, trouble: str,
) -> None:  # fmt: skip
    wandb.is_logged_in = False
    wandb.failing = ("login",) if trouble == "no network" else ()
    out = tmp_path / "out"
    arguments: list[Any] = [job, "--data", store.path, "--out", out]
    if job == "evaluate":
        write_generated(tmp_path / "gen", store, 5)
        arguments += ["--trips", tmp_path / "gen"]
    if job == "tune":
        arguments += ["--teacher", "127.0.0.1:1"]  # not asked before
    setting = "train.log.wandb" if job == "tune" else "log.wandb"
    assert main(*arguments, f"{setting}=online") == 2
    err = capsys.readouterr().err
    assert err.count("Weights & Biases cannot be used") == 1 and "Traceback" not in err
    assert not out.exists()
    if job == "train":
        assert main(*arguments, f"{setting}=offline", *TRAIN) == 0, "the same directory is refused"


@pytest.mark.integration
@pytest.mark.parametrize("failing", ["init", "log", "finish"])
def test_a_run_trains_without_it(
    wandb: FakeWandb, store: Store, tmp_path: Path, main: Callable[..., int], failing: str
) -> None:
    wandb.failing = (failing,)
    out = tmp_path / "out"
    assert main("train", "--data", store.path, "--out", out, "log.wandb=online", *TRAIN) == 0
    assert (out / "summary.json").exists() and len((out / "metrics.jsonl").read_text().splitlines()) > 2


@pytest.mark.integration
def test_a_resumed_run_is_the_same_run(
    wandb: FakeWandb, store: Store, tmp_path: Path, main: Callable[..., int]
) -> None:
    arguments = ("train", "--data", store.path, "--out", tmp_path / "out", "log.wandb=offline", *TRAIN)
    assert main(*arguments) == 0
    assert main(*arguments, "--resume") == 0
    assert len(wandb.started) == 2 and len({arguments["id"] for arguments in wandb.started}) == 1


@pytest.mark.integration
@pytest.mark.parametrize("failing", ["init", "log"])
def test_a_failed_logger_uses_up_no_trial(wandb: FakeWandb, store: Store, tmp_path: Path, failing: str) -> None:
    wandb.failing = (failing,)
    settings = tune_settings(store, tmp_path / "out", seeds=[1, 2], train={**SMALL, **ONLINE})
    assert run_one(phase_of(settings)).state == TrialState.COMPLETE
    assert len({arguments["id"] for arguments in wandb.started}) == 2, "seeds that train in step share a run"
    assert wandb.logins == 0, "asked in each trial rather than once"


@pytest.mark.integration
def test_only_the_first_rank_asks(
    wandb: FakeWandb, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = TrainConfig.model_validate({"data": store.path, "out": tmp_path / "out", **SMALL, **ONLINE})
    for rank in (0, 1):
        with contextlib.ExitStack() as claimed:
            training.open_inputs(settings, Ranks(rank, 2), claimed)
    assert wandb.logins == 1


# The library itself, in processes of their own

OFFLINE = """
import sys
from pathlib import Path
from shared.sinks import Sinks, WandbRun, check_wandb
check_wandb("offline")
run = WandbRun(asked="offline", project="p", name="n", config={"a": 1})
a, b = Sinks(Path(sys.argv[1]), False, run), Sinks(Path(sys.argv[2]), False, run)
for step in range(3):
    a.write(step, {"v": float(step)})
    b.write(step, {"v": -float(step)})
a.close(), b.close()
"""


def library(code: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs code where wandb is the real one, and no server is."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "WANDB_BASE_URL": "http://127.0.0.1:9"} | variables
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=200, env=environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.integration
def test_the_library_keeps_runs_that_are_open_together_apart(tmp_path: Path) -> None:
    for _ in range(2):
        done = library(OFFLINE, tmp_path / "a", tmp_path / "b")
        assert done.returncode == 0 and "failed" not in done.stderr, done.stderr
    for out in (tmp_path / "a", tmp_path / "b"):
        identity = json.loads((out / WANDB_FILE).read_text())["id"]
        runs = [path.name for path in (out / "wandb").glob("offline-run-*")]
        assert runs and all(name.endswith(identity) for name in runs)
    assert (tmp_path / "a" / WANDB_FILE).read_text() != (tmp_path / "b" / WANDB_FILE).read_text()


@pytest.mark.integration
@pytest.mark.parametrize("key", ["", "short", "a" * 40], ids=["none", "malformed", "no server"])
def test_the_library_refuses_rather_than_waits(tmp_path: Path, key: str) -> None:
    code = """if True:
    from shared.errors import ConfigError
    from shared.sinks import check_wandb
    try:
        check_wandb("online")
    except ConfigError as error:
        print(error)
    """
    done = library(code, **({"WANDB_API_KEY": key} if key else {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("log.wandb=online, and Weights & Biases cannot be used: ")
    assert done.stdout.count("\n") == 1
    assert "not logged in" in done.stdout if not key else "not logged in" not in done.stdout


@pytest.mark.integration
def test_a_job_that_cannot_use_the_library_ends_though_the_librarys_process_does_not() -> None:
    code = """if True:
    import threading
    from wandb.sdk.lib.service.service_process import ServiceProcess
    from shared import sinks
    from shared.errors import ConfigError
    ServiceProcess.join = lambda self: threading.Event().wait()
    sinks.LEAVE_SECONDS = 0.2
    try:
        sinks.check_wandb("online")
    except ConfigError as error:
        print(error)
    """
    done = library(code, WANDB_API_KEY="a" * 40)
    assert done.returncode == 0 and done.stdout.startswith("log.wandb=online, "), done.stderr
