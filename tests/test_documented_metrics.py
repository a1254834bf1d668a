"""docs/metrics.md explains every value that a run, its validation and an evaluation give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from support.generated_trips import write_generated
from support.random_city import write_random_store

from shared import cli
from student_trainer.__main__ import JOBS

PAGE = REPOSITORY / "docs" / "metrics.md"
VARIANTS = ("_arrived", "_od_cells_upstream")
"""Of metrics of pairs; the page explains each ending once."""


def documented() -> set[str]:
    """What stands in `code` at the beginning of a line of a table."""
    cells = re.findall(r"^\| (`[^|]*`) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def unexplained(names: set[str]) -> set[str]:
    """Names that the page does not have, neither themselves nor as one of a pattern."""
    page = documented()
    endings = [ending for ending in VARIANTS if f"*{ending}" in page]
    patterns = [re.compile(re.escape(name).replace(r"\*", r"\w+")) for name in page if name[:1] != "*"]
    bases = {name: next((name.removesuffix(end) for end in endings if name.endswith(end)), name) for name in names}
    return {name for name, base in bases.items() if not any(pattern.fullmatch(base) for pattern in patterns)}


def student_trainer(*arguments: object) -> None:
    assert cli.main("student-trainer", "", JOBS, [str(argument) for argument in arguments]) == 0


@pytest.mark.integration
def test_every_value_is_explained(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    store = write_random_store(tmp_path / "store", trips=40)
    write_tiny_teacher(tmp_path / "teacher.safetensors", tokeniser=store.tokeniser)
    run = tmp_path / "run"
    with running_teacher(tmp_path / "teacher.safetensors") as server:
        student_trainer(
            "train", "--data", store.path, "--teacher", server.address, "--out", run, "model.road_id_dim=8",
            "model.road_attr_dim=2", "optim.epochs=1", "optim.batch_size=8", "log.every=1", "log.tensorboard=false",
            "client.on_failure=skip", "runtime.threads=1",
        )  # fmt: skip
    logged = {name for line in (run / "metrics.jsonl").read_text().splitlines() for name in json.loads(line)} - {"step"}
    assert {"train/loss_kl", "perf/teacher_wait_ms", "val/kl"} <= logged
    assert unexplained(logged) == set()

    write_generated(tmp_path / "trips", store, 10)
    student_trainer(
        "evaluate", "--data", store.path, "--trips", tmp_path / "trips", "--weights", run / "checkpoints" / "best.pt",
        "--out", tmp_path / "evaluation", "bootstrap.draws=100",
    )  # fmt: skip
    measured = set(json.loads((tmp_path / "evaluation" / "metrics.json").read_text())["metrics"])
    assert {"hausdorff_km_arrived", "jsd_distance_bits", "next_road_ece"} <= measured
    assert unexplained(measured) == set()


def test_what_the_page_lacks_is_found() -> None:
    known, unknown = {"hausdorff_km_arrived", "jsd_radius_nats_upstream"}, {"perf/sleep_ms", "calm", "calm_arrived"}
    assert unexplained(known | unknown) == unknown
