"""Every file in config/: the schemas take it, its commands are real, and it says what to expect."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_lines import PACKAGES, every_job, needed_settings, parsed_settings

from shared import config
from student_trainer.distill.config import DistillConfig
from student_trainer.prepare.config import PrepareConfig
from student_trainer.tune.space import POINTS

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "config").glob("*.yaml"))
JOBS = {job.yaml_section: (program, job) for program, job in every_job()}
PER_JOB = JOBS.keys() - {"export-student", "export", "answer", "info", "query"} | {"distill", "document"}
"""All jobs but those whose flags say everything; a distilled run and the design document's have files of their own."""
PER_DATA_SET = {"beijing", "porto", "san_francisco"}

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def header(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])


def commands(path: Path) -> list[list[str]]:
    """The command lines in a file's header."""
    pattern = rf"^# +((?:{'|'.join(PACKAGES)}) .*--config .*)$"
    return [shlex.split(line) for line in re.findall(pattern, header(path), re.MULTILINE)]


def leaves(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def test_there_is_a_file_for_every_job_and_data_set() -> None:
    assert {path.stem for path in FILES} >= PER_JOB | PER_DATA_SET


@each_file
def test_the_schemas_take_every_setting_of_every_section(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real command line, so that a key that no schema has is an error, and every value arrives."""
    monkeypatch.chdir(REPOSITORY)
    sections = yaml.safe_load(path.read_text())
    assert sections
    for job, values in sections.items():
        program, known = JOBS[job]
        settings = parsed_settings(program, [known.name, "--config", str(path), *needed_settings(known)], monkeypatch)
        resolved = leaves(settings.model_dump(mode="json"))
        for key, value in leaves(values).items():
            assert resolved[key] == value, f"{job}.{key}"


@each_file
def test_the_header_gives_commands_that_run_and_what_to_expect(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    if path.stem not in PER_JOB | PER_DATA_SET:
        assert header(path)
        return
    assert re.search(r"^# Time: +\S", header(path), re.MULTILINE)
    assert re.search(r"^# Result: +\S", header(path), re.MULTILINE)
    assert commands(path)
    for program, *argv in commands(path):
        assert f"config/{path.name}" in argv
        parsed_settings(program, argv, monkeypatch)


def test_the_distilled_run_differs_from_its_baseline_in_the_distillation_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    base = ["train", "--data", "d", "--out", "o", "--config", "config/train.yaml"]
    vanilla = leaves(parsed_settings("student-trainer", base, monkeypatch).model_dump())
    both = parsed_settings("student-trainer", [*base, "config/distill.yaml"], monkeypatch)
    changed = {key for key, value in leaves(both.model_dump()).items() if vanilla[key] != value}
    assert {key.split(".")[0] for key in changed} <= {"distill", "client"}


def distill_of(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    line = ["train", "--data", "d", "--out", "o", "--config", f"config/{name}.yaml"]
    return dict(parsed_settings("student-trainer", line, monkeypatch).model_dump()["distill"])


def test_files_of_our_own_distillation_have_its_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a changed default does not leave them behind."""
    monkeypatch.chdir(REPOSITORY)
    for name in ("distill", "san_francisco"):
        assert distill_of(name, monkeypatch) == DistillConfig().model_dump()


def test_files_of_earlier_systems_have_none_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights as the earlier system searched them; the design document's file has its formula to the letter."""
    monkeypatch.chdir(REPOSITORY)
    for name in ("document", "beijing", "porto"):
        found = distill_of(name, monkeypatch)
        assert (found["target"], found["head"], found["schedule"]) == ("history", 0, "constant")
        assert (found["sampled_weight"], found["sampled_labels"], found["tau_squared"]) == (None, 0, False)
        assert found["time_factor"] == 1
        assert 0.001 <= found["weight"] <= 0.1 and 1 <= found["temperature"] <= 5 and 2 <= found["window"] <= 8
    assert distill_of("document", monkeypatch)["collisions"] == "duplicate"
    prepare = yaml.safe_load((REPOSITORY / "config" / "document.yaml").read_text())["prepare"]
    assert prepare["grid"] == {"cell_size": 0.001, "centroid": "vertex_mean", "vocabulary": "full"}


def test_the_points_that_a_study_tries_first_begin_with_the_default() -> None:
    default = DistillConfig()
    assert POINTS[0] == {
        "distill.weight": default.weight, "distill.temperature": default.temperature, "distill.window": default.window
    }  # fmt: skip


def test_a_misspelt_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("prepare: {grid: {cellsize: 1}}")
    with pytest.raises(config.ConfigError, match="cellsize"):
        config.load(PrepareConfig, "prepare", [path], ["raw=r", "out=o"])
