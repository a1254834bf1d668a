"""The job table: every command's schema and function exist, flags reach the settings they name."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import pytest
from conftest import REPOSITORY
from support.command_lines import parsed_settings

from shared import config
from shared.cli import Job
from shared.errors import ConfigError
from teacher_server.__main__ import JOBS, main
from teacher_server.lmtad.config import ExportConfig
from teacher_server.serve.config import ServeConfig


def resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_job_is_whole(job: Job) -> None:
    schema = resolve(job.schema)
    assert callable(resolve(job.run))
    assert {flag.key for flag in job.flags} <= set(schema.model_fields)
    assert job.name in config.JOBS
    for key, _, doc in config.describe(schema):
        assert doc, f"{key} has no docstring"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_help_lists_flags_and_settings(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([job.name, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for flag in job.flags:
        assert flag.name in text
    for key, _, _ in config.describe(resolve(job.schema)):
        assert f"\n  {key} =" in text


def settings_of(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """The settings that a command line resolves to."""
    return parsed_settings("teacher-server", arguments, monkeypatch)


def test_serve_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--teacher", "t", "--listen", "[::1]:0", "--metrics-listen", "off", "batching.max_batch_tokens=7"]
    settings = settings_of(monkeypatch, "serve", *flags)
    assert isinstance(settings, ServeConfig)
    assert (settings.listen, settings.metrics_listen, settings.batching.max_batch_tokens) == ("[::1]:0", "off", 7)


def test_export_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = ["--checkpoint", "c", "--out", "o", "--grid-rows", "4", "--grid-cols", "5", "overwrite=true"]
    box = ["--bounds", "-41.5", "-8.7", "41.2", "8.5"]
    settings = settings_of(monkeypatch, "export", *flags, "--cell-size", "0.01", *box)
    assert isinstance(settings, ExportConfig)
    assert (settings.grid_rows, settings.grid_cols, settings.overwrite) == (4, 5, True)
    assert settings.bounds == (-41.5, -8.7, 41.2, 8.5)
    assert settings.cell_sizes == (0.01, 0.01)
    both = settings_of(monkeypatch, "export", *flags, "--cell-size", "0.01,0.02", *box)
    assert both.cell_sizes == (0.01, 0.02)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("listen=nonsense", "listen: expected HOST:PORT"),
        ("metrics_listen=9464", "metrics_listen: expected HOST:PORT.* as in HOST:9464"),
        ("metrics_listen=unix:/x", "metrics are served over TCP"),
        ("batching.max_queued_positions=5", "max_request_positions is above max_queued_positions"),
        ("batching.max_queued_candidates=5", "max_request_candidates is above max_queued_candidates"),
        ("batching.max_bach_tokens=5", "unknown setting batching.max_bach_tokens"),
        ("drain_seconds=0", "drain_seconds: Input should be greater than 0"),
    ],
)
def test_bad_serve_settings_are_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.load(ServeConfig, "serve", overrides=["teacher=t", override])


def test_bare_off_in_yaml_is_off() -> None:
    settings = config.load(ServeConfig, "serve", overrides=["teacher=t", "metrics_listen=off"])
    assert settings.metrics_listen == "off"


def test_package_runs_and_does_not_import_torch_for_help() -> None:
    code = "import sys, teacher_server.__main__ as m\ntry: m.main(['--version'])\nexcept SystemExit: pass\n"
    result = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    version, *_, has_torch = result.stdout.splitlines()
    assert version.startswith("teacher-server ")
    assert has_torch == "False"
