"""A directory with all that a report shows: a store, two evaluated models, their comparison, a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shared.store import Store
from student_trainer.__main__ import main as _main
from student_trainer.demo_city.config import DemoCityConfig
from student_trainer.demo_city.run import run as make_city
from student_trainer.prepare.config import PrepareConfig
from student_trainer.prepare.run import prepare
from support.generated_trips import write_generated

PAIRS = 40


def call(*argv: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["student-trainer", *map(str, argv)])
        return _main()


@pytest.fixture(scope="session")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store, two evaluated models, their comparison, a run, and a report of all."""
    root = tmp_path_factory.mktemp("report [1] #2*")
    counts = {"train": 60, "val": 50, "test": 2}
    make_city(DemoCityConfig.model_validate({"out": root / "raw", "columns": 10, "rows": 10, "trips": counts}))
    prepare(PrepareConfig.model_validate({"raw": root / "raw", "out": root / "store", "zones": {"count": 4}}))
    store = Store(root / "store")
    for name, spoiled, seed in (("first", 0.1, 0), ("second", 0.6, 1)):
        write_generated(root / f"trips-{name}", store, PAIRS, seed=seed, spoiled=spoiled)
        arguments = ("--data", store.path, "--trips", root / f"trips-{name}", "--out", root / name)
        assert call("evaluate", *arguments, f"name={name}", "bootstrap.draws=100") == 0
    both = f"{root / 'first'},{root / 'second'}"
    assert call("compare", "--evaluations", both, "--out", root / "comparison", "bootstrap.draws=100") == 0
    (root / "run").mkdir()
    lines = [{"step": s, "train/loss_next_road": 1 / s} for s in (1, 2, 3)] + [{"step": 3, "val/accuracy": 0.5}]
    (root / "run" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report(root, root / "report") == 0
    return root


def report(root: Path, out: Path, *more: object) -> int:
    both = f"{root / 'first'},{root / 'second'}"
    inputs = ("--evaluations", both, "--comparison", root / "comparison", "--runs", root / "run")
    return call("report", "--data", root / "store", *inputs, "--out", out, *more)
