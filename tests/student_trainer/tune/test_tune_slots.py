"""Every slot is filled once: by several processes, on every kind of storage, and when processes are killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import psutil
import pytest
from conftest import REPOSITORY
from optuna.pruners import NopPruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import TrialState
from support.postgres import running_postgres

from shared.errors import ConfigError
from student_trainer.tune import slots as slots_module
from student_trainer.tune.config import StorageConfig
from student_trainer.tune.liveness import is_dead, worker_name
from student_trainer.tune.slots import KILLED, STOPPED, Slots, open_study
from student_trainer.tune.storage import open_storage, url_of

SCRIPT = str(REPOSITORY / "tests" / "support" / "fill_slots.py")
PROXY = """
import sys
from optuna.storages import run_grpc_proxy_server
from student_trainer.tune.config import StorageConfig
from student_trainer.tune.storage import open_storage, url_of
from pathlib import Path
run_grpc_proxy_server(open_storage(StorageConfig(url=sys.argv[1]), Path('.')), host='127.0.0.1', port=int(sys.argv[2]))
"""
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def sampler(slot: int) -> BaseSampler:
    return RandomSampler(seed=slot)


def slots_in(folder: Path, **storage: object) -> Slots:
    config = StorageConfig.model_validate({"url": f"sqlite:///{folder / 'study.db'}", **storage})
    opened = open_storage(config, folder)
    return Slots(open_study(opened, "s", ["maximize"], {"a": 1}, NopPruner()), opened, config, folder / "lock")


@contextlib.contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    yield f"sqlite:///{folder / 'study.db'}"


@contextlib.contextmanager
def journal(folder: Path) -> Iterator[str]:
    yield f"journal:{folder / 'journal.log'}"


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    with running_postgres() as url:
        yield url


@contextlib.contextmanager
def proxy(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-c", PROXY, f"sqlite:///{folder / 'behind.db'}", str(port)]
    process = subprocess.Popen(command, env=ENVIRONMENT, cwd=REPOSITORY)
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def close(storage: optuna.storages.BaseStorage) -> None:
    """Ends connections that would otherwise outlive the server."""
    storage.remove_session()
    backend = getattr(storage, "_backend", None)
    if isinstance(backend, optuna.storages.RDBStorage):
        backend.engine.dispose()


def start(url: str, folder: Path, count: int, seconds: float = 0.0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, SCRIPT, url, str(folder), str(count), str(seconds)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize("kind", [sqlite, journal, postgres, proxy], ids=lambda kind: kind.__name__)
def test_processes_fill_every_slot_once(kind: Callable[[Path], contextlib.AbstractContextManager[str]],
                                        tmp_path: Path) -> None:  # fmt: skip
    with kind(tmp_path) as url:
        workers = [start(url, tmp_path, 24) for _ in range(3)]
        lines = []
        for worker in workers:
            out, err = worker.communicate(timeout=200)
            assert worker.returncode == 0, err
            lines += [line.split() for line in out.splitlines()]
        storage = open_storage(StorageConfig(url=url), tmp_path)
        study = optuna.load_study(study_name="race", storage=storage)
        states = [trial.state for trial in study.get_trials(deepcopy=False)]
        values = {trial.user_attrs["slot"]: trial.values for trial in study.trials}
        close(storage)
    filled = sorted(int(line[1]) for line in lines if line[0] == "filled")
    assert filled == list(range(24))
    assert states == [TrialState.COMPLETE] * 24
    assert values[0] == values[1] == [0.5]
    assert len({tuple(value) for value in values.values()}) == 23  # all others were drawn, each its own


@pytest.mark.integration
def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """The values it had been given are tried again by another, at once, for it is seen to be dead."""
    with sqlite(tmp_path) as url:
        first = start(url, tmp_path, 4, seconds=300)
        assert first.stdout is not None
        claimed = first.stdout.readline().split()
        first.kill()
        first.communicate()
        second = start(url, tmp_path, 4)
        out, err = second.communicate(timeout=120)
        assert second.returncode == 0, err
        study = optuna.load_study(study_name="race", storage=open_storage(StorageConfig(url=url), tmp_path))
    again = [line.split() for line in out.splitlines() if line.startswith(f"filled {claimed[1]} ")]
    assert len(again) == 1 and again[0][3] == claimed[3] and again[0][2] != claimed[2]
    lost = [trial for trial in study.trials if trial.state == TrialState.FAIL]
    assert [trial.number for trial in lost] == [int(claimed[2])]
    assert lost[0].user_attrs["lost"] == KILLED
    assert sum(trial.state == TrialState.COMPLETE for trial in study.trials) == 4


def test_a_silent_worker_of_another_machine_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = slots_in(tmp_path, heartbeat_seconds=1, stale_seconds=100)
    found.fill([None])
    claimed = found.claim(sampler)
    assert claimed is not None
    now = [1000.0]
    monkeypatch.setattr(slots_module.time, "monotonic", lambda: now[0])
    claimed.set_user_attr("worker", "elsewhere/1/0.0")
    for beat in range(3):  # as long as it counts, time does not matter
        claimed.set_user_attr("alive", beat)
        found.reap()
        now[0] += 90
    found.reap()
    assert found.study.trials[0].state == TrialState.RUNNING
    now[0] += 20
    found.reap()
    (trial,) = found.study.trials
    assert trial.state == TrialState.FAIL
    found.fill([None])
    assert [trial.state for trial in found.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    assert not found.tell(claimed, TrialState.COMPLETE, [1.0])  # it was only slow: its result is not counted twice


def test_a_slot_is_given_up_after_so_many_losses_until_somebody_starts_anew(tmp_path: Path) -> None:
    found = slots_in(tmp_path, max_retries=1)
    found.fill([None])
    for how in (STOPPED, STOPPED, KILLED, KILLED):  # stops do not count
        claimed = found.claim(sampler)
        assert claimed is not None and found.open == 1
        found.lose(claimed, how, "test")
        found.fill([None])
    assert found.claim(sampler) is None and found.open == 0
    found.fill([None], again="lost")
    assert found.open == 1


def test_what_failed_by_itself_is_not_tried_again(tmp_path: Path) -> None:
    found = slots_in(tmp_path)
    found.fill([None])
    claimed = found.claim(sampler)
    assert claimed is not None
    found.fail(claimed, "ValueError: x", "Traceback ...")
    found.fill([None], again="lost")
    assert found.open == 0
    (ended,) = found.ended()
    assert ended.state == TrialState.FAIL and ended.user_attrs["traceback"] == "Traceback ..."
    found.fill([None], again="all")
    assert found.open == 1


def test_two_machines_that_mend_the_same_slot_fill_it_once(tmp_path: Path) -> None:
    found = slots_in(tmp_path)
    found.fill([None])
    found.study.add_trial(
        optuna.trial.create_trial(state=TrialState.WAITING, user_attrs={"slot": 0, "attempt": 0, "losses": 0})
    )
    claimed = found.claim(sampler)
    assert claimed is not None and claimed.number == 0
    assert found.claim(sampler) is None
    assert found.study.trials[1].state == TrialState.FAIL
    assert found.tell(claimed, TrialState.COMPLETE, [1.0])
    assert found.open == 0 and len(found.ended()) == 1


def test_a_study_about_something_else_is_refused(tmp_path: Path) -> None:
    config = StorageConfig(url=f"sqlite:///{tmp_path / 'study.db'}")
    storage = open_storage(config, tmp_path)
    open_study(storage, "s", ["maximize"], {"train": {"optim": {"lr": 1, "b": 2}}}, NopPruner())
    open_study(storage, "s", ["maximize"], {"train": {"optim": {"lr": 1, "b": 2}}}, NopPruner())
    with pytest.raises(ConfigError, match=r"train\.optim\.lr was 1, is 3\. "):
        open_study(storage, "s", ["maximize"], {"train": {"optim": {"lr": 3, "b": 2}}}, NopPruner())


def test_processes_know_each_other() -> None:
    assert not is_dead(worker_name())
    assert not is_dead(None)
    assert not is_dead("elsewhere/1/0.0")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = worker_name().rsplit("/", 2)[0]
    created = psutil.Process(process.pid).create_time()
    assert not is_dead(f"{name}/{process.pid}/{created:.2f}")
    assert is_dead(f"{name}/{process.pid}/{created - 100:.2f}")  # the number is another's now
    process.kill()
    begin = time.monotonic()
    while not is_dead(f"{name}/{process.pid}/{created:.2f}"):
        assert time.monotonic() - begin < 10
    process.communicate()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://x", "storage.url oracle://x: give sqlite"),
        ("grpc://nowhere", "expected grpc://HOST:PORT"),
        ("grpc://nowhere:99999", "port 99999 is above 65535"),
        ("sqlite://", "expected sqlite:///FILE"),
        ("sqlite:///:memory:", "expected sqlite:///FILE"),
        ("postgresql+psycopg://me:$ABSENT@127.0.0.1/x", "the environment has no ABSENT"),
        ("postgresql+psycopg://me:$SECRET@127.0.0.1:1/x?connect_timeout=2", "cannot be opened"),
    ],
)
def test_a_storage_that_cannot_be_opened(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ABSENT", raising=False)
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(ConfigError, match=message.replace("$", r"\$").replace("+", r"\+")) as refused:
        open_storage(StorageConfig(url=url), tmp_path)
    assert "hunter2" not in str(refused.value)


ODD = (
    "a?b",
    "cost$HOME",
    "a%20b",
    "a#b",
    "a b",
    "{a}",
    "~",
    "$$",
    "a&b=c",
    "é",
    "50% [1] 'x' \"y\"",
    "file:a?uri=true",
)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", ODD)
def test_a_study_is_where_its_directory_is_whatever_its_name(name: str, tmp_path: Path) -> None:
    out = tmp_path / name
    storage = open_storage(StorageConfig(), out)
    optuna.create_study(study_name="s", storage=storage)
    assert (names_in(tmp_path), names_in(out)) == ([name], ["optuna.db"])
    url = url_of(StorageConfig(), out)  # as it is printed: for Optuna, and for storage.url
    assert optuna.get_all_study_names(url) == ["s"]
    if "$" not in url:
        assert optuna.get_all_study_names(open_storage(StorageConfig(url=url), tmp_path / "elsewhere")) == ["s"]
    assert (names_in(tmp_path), names_in(out)) == ([name], ["optuna.db"])


@pytest.mark.parametrize("name", [name for name in ODD if "uri=true" not in name])
@pytest.mark.parametrize("scheme", ["sqlite:///", "journal:"])
def test_a_file_in_a_storage_url_is_taken_as_it_is(scheme: str, name: str, tmp_path: Path) -> None:
    url = f"{scheme}{tmp_path}/{name}/s".replace("$", "$$")
    optuna.create_study(study_name="s", storage=open_storage(StorageConfig(url=url), tmp_path / "elsewhere"))
    assert names_in(tmp_path) == [name]
    assert "s" in names_in(tmp_path / name)


def test_a_storage_url_has_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "here $NOT")
    open_storage(StorageConfig(url=f"sqlite:///{tmp_path}/$PLACE/${{PLACE}}.db"), tmp_path)
    assert names_in(tmp_path / "here $NOT") == ["here $NOT.db"]
