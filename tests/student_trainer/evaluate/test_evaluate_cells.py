"""A student knows no cells: what was made of it on a store stands beside what is made on the store with other cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.report_city import call
from support.trained_runs import write_run

from shared.errors import CompatibilityError
from shared.store import Store
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.run import run as make_city
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare

CELLS = {"coarse": 0.002, "fine": 0.0005}


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A city prepared with coarse and with fine cells, and two students that were trained on the first."""
    root = tmp_path_factory.mktemp("cells")
    counts = {"train": 60, "val": 20, "test": 20}
    make_city(DemoCityConfig.model_validate({"out": root / "raw", "columns": 10, "rows": 10, "trips": counts}))
    for name, size in CELLS.items():
        values = {"raw": root / "raw", "out": root / name, "zones": {"count": 4}, "grid": {"cell_size": size}}
        prepare(PrepareConfig.model_validate(values))
    for seed in (1, 2):
        write_run(root / f"run{seed}", Store(root / "coarse"), seed)
    return root


def metrics_of(evaluation: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((evaluation / "metrics.json").read_text())["metrics"]
    return found


def test_the_same_trips_and_metrics_on_either(city: Path, tmp_path: Path) -> None:
    coarse, fine = (Store(city / name) for name in CELLS)
    assert coarse.tokeniser.fingerprint != fine.tokeniser.fingerprint
    assert coarse.fingerprint == fine.fingerprint
    for name, cells, run in (("coarse", "coarse", "run1"), ("fine", "fine", "run1"), ("other", "fine", "run2")):
        given, weights = ("--data", city / cells), ("--weights", city / run / "checkpoints" / "best.pt")
        trips = tmp_path / f"trips-{name}"
        assert call("generate", *given, *weights, "--out", trips, f"name={name}", "search.max_steps=40") == 0
        judged = ("--trips", trips, "--out", tmp_path / name, "bootstrap.draws=100")
        assert call("evaluate", *given, *weights, *judged) == 0
    assert metrics_of(tmp_path / "coarse") == metrics_of(tmp_path / "fine")
    both = f"{tmp_path / 'coarse'},{tmp_path / 'other'}"
    assert call("compare", "--evaluations", both, "--out", tmp_path / "compared", "bootstrap.draws=100") == 0


def test_a_teacher_of_the_other_cells_is_refused(city: Path) -> None:
    with pytest.raises(CompatibilityError, match="do not share grid and vocabulary"):
        Store(city / "fine").check_vocabulary(Store(city / "coarse").tokeniser, "at host:1")
