"""The systemd unit: what it starts is real, systemd takes it, and it is closed as far as the daemon allows."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPOSITORY

from teacher_server.serve.config import ServeConfig

FOLDER = REPOSITORY / "docker" / "systemd"
UNIT, GPU = FOLDER / "teacher-server.service", FOLDER / "gpu.conf"
EXPOSURE = 1.5
"""At most, of 10: what is left is the network, which is what the daemon is for, and machine code (numba)."""


def values(path: Path, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", path.read_text(), re.MULTILINE)


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([program, *arguments], capture_output=True, text=True)


@pytest.fixture(params=[False, True], ids=["cpu", "gpu"])
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit as a file of its own whose program is there, with or without the part for accelerators."""
    path = tmp_path / UNIT.name
    path.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", UNIT.read_text(), flags=re.MULTILINE))
    if request.param:
        (tmp_path / f"{UNIT.name}.d").mkdir()
        shutil.copy(GPU, tmp_path / f"{UNIT.name}.d")
    return path


def test_systemd_takes_the_unit(unit: Path) -> None:
    done = analyze("verify", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_refuses_a_misspelt_setting(tmp_path: Path) -> None:
    """Otherwise the test above could not fail."""
    path = tmp_path / UNIT.name
    path.write_text(UNIT.read_text().replace("ProtectHome=", "ProtectHme="))
    assert "ProtectHme" in analyze("verify", str(path)).stderr


def test_it_is_closed_as_far_as_the_daemon_allows(unit: Path) -> None:
    if "--offline" not in analyze("--help").stdout:
        pytest.skip("this systemd-analyze judges no files")
    done = analyze("security", "--offline=true", "--no-pager", str(unit))
    (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(exposure) <= EXPOSURE, done.stdout


def test_it_waits_for_readiness_and_for_the_drain() -> None:
    assert values(UNIT, "Type") == ["notify"]
    drain = ServeConfig.model_fields["drain_seconds"].default
    assert int(values(UNIT, "TimeoutStopSec")[0]) > drain
    assert int(values(UNIT, "TimeoutStartSec")[0]) >= 600


def test_machine_code_may_be_made_and_is_kept_in_its_own_directory() -> None:
    assert values(UNIT, "MemoryDenyWriteExecute") == []
    cache = f"/var/cache/{values(UNIT, 'CacheDirectory')[0]}"
    for path in (UNIT, GPU):
        for variable in values(path, "Environment"):
            assert variable.partition("=")[2].startswith(cache)
