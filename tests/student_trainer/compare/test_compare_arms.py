"""Which runs are seeds of one arm, what it is called, and what it is compared with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared.errors import ConfigError
from shared.store import Store
from student_trainer.compare import arms
from student_trainer.compare.arms import Model
from student_trainer.evaluate import training
from student_trainer.runs import checkpoint as checkpoints


def trained(path: Path, teacher: str = "none", **settings: Any) -> dict[str, Any]:
    """The training of a run's checkpoint with these settings, as an evaluation holds it."""
    found = training.read(write_run(path, a_store(path.parent), settings.pop("seed"), teacher, **settings))
    assert found is not None
    known: dict[str, Any] = json.loads(json.dumps(found.as_dict()))
    return known


def a_store(folder: Path) -> Store:
    return Store(folder / "store") if (folder / "store").exists() else write_random_store(folder / "store", trips=12)


def test_runs_that_differ_in_seed_place_and_address_are_one_arm(tmp_path: Path) -> None:
    models = [
        Model("distilled-s2", trained(tmp_path / "a", "h:1", seed=2)),
        Model("vanilla-s1", trained(tmp_path / "b", seed=1, distill={"temperature": 3.0})),
        Model("distilled-s1", trained(tmp_path / "c", "h:2", seed=1, log={"every": 7}, runtime={"threads": 1})),
        Model("vanilla-s2", trained(tmp_path / "d", seed=2)),
        Model("weak-s1", trained(tmp_path / "e", "h:1", seed=1, distill={"weight": 0.01})),
        Model("off-s3", trained(tmp_path / "f", "h:1", seed=3, distill={"weight": 0, "head": 0})),
        Model("downloaded", None),
        Model("shortest-path", None, is_reference=True),
    ]
    found = arms.group(models)
    assert [(arm.name, arm.role, arm.models, arm.seeds) for arm in found] == [
        ("distilled", "distilled", ("distilled-s1", "distilled-s2"), (1, 2)),
        ("vanilla", "vanilla", ("vanilla-s1", "vanilla-s2", "off-s3"), (1, 2, 3)),
        ("weak-s1", "distilled", ("weak-s1",), (1,)),
        ("downloaded", "unknown", ("downloaded",), (None,)),
        ("shortest-path", "reference", ("shortest-path",), (None,)),
    ]
    assert dict(found[2].settings) == {"distill.weight": 0.01}
    baseline = arms.choose_baseline(found, "")
    assert baseline.name == "vanilla"
    ordered = ["vanilla", "distilled", "weak-s1", "downloaded", "shortest-path"]
    assert [arm.name for arm in arms.in_order(found, baseline)] == ordered
    assert arms.sentence(baseline) == "baseline: vanilla (3 runs without a teacher); baseline=NAME chooses another"
    assert arms.choose_baseline(found, "distilled-s2").name == "distilled"
    with pytest.raises(ConfigError, match="baseline nobody is not among the models"):
        arms.choose_baseline(found, "nobody")


def test_trips_of_another_search_are_another_arm(tmp_path: Path) -> None:
    known = trained(tmp_path / "a", seed=1)
    assert len(arms.group([Model("beam", known, "beam"), Model("greedy", known, "greedy")])) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("distilled-seed1", "distilled-seed2"), "distilled"),
        (("a_1", "a_10"), "a"),
        (("lambda0.3-s1", "lambda0.3-s2"), "lambda0.3"),
        (("a/seed1", "a/seed2"), "a"),
        (("seed1-plain", "seed2-plain"), "plain"),
        (("1", "2"), "vanilla"),
        (("alone-s1",), "alone-s1"),
    ],
)
def test_an_arm_is_called_what_its_runs_share(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    models = [Model(name, trained(tmp_path / str(seed), seed=seed)) for seed, name in enumerate(names)]
    assert [arm.name for arm in arms.group(models)] == [expected]


def test_arms_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    models = [
        Model(str(number), trained(tmp_path / str(number), "h:1", seed=number % 2, distill={"weight": weight}))
        for number, weight in enumerate((0.1, 0.1, 0.3, 0.3))
    ]
    assert [arm.name for arm in arms.group(models)] == [
        "distilled (distill.weight=0.1)",
        "distilled (distill.weight=0.3)",
    ]


def test_what_is_known_of_weights(tmp_path: Path) -> None:
    """A checkpoint's own settings, those of the run whose weights were exported, a moved run's saved ones, or none."""
    known = trained(tmp_path / "run", "h:1", seed=5)
    assert (known["seed"], known["teacher"], known["store"]) == (5, "revision", a_store(tmp_path).fingerprint)
    exported = tmp_path / "run" / "hoser.pth"
    checkpoints.save_tensors(exported, {"w": torch.zeros(1)})
    found = training.read(exported)
    assert found is not None and found.as_dict() == known
    (tmp_path / "run" / "checkpoints" / "best.pt").unlink()
    found = training.read(exported)
    assert found is not None and (found.seed, found.teacher, found.store) == (5, "h:1", "")
    assert found.settings == known["settings"]
    bare = tmp_path / "bare.pth"
    checkpoints.save_tensors(bare, {"w": torch.zeros(1)})
    assert training.read(bare) is None
    assert training.read(tmp_path / "nowhere.pt") is None
    bare.write_bytes(b"damaged")
    assert training.read(bare) is None


def test_directories_get_names_that_differ(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a/seed1", "b/seed1", "b/seed2")]
    assert arms.unique_names(paths) == ["a/seed1", "b/seed1", "b/seed2"]
    assert arms.unique_names(paths[1:]) == ["seed1", "seed2"]
    (tmp_path / "student.pt").symlink_to(paths[0])
    assert arms.unique_names([tmp_path / "student.pt", paths[1]]) == ["student.pt", "seed1"]
    with pytest.raises(ConfigError, match="named twice"):
        arms.unique_names([tmp_path / "student.pt", paths[0]])
    with pytest.raises(ConfigError, match="named twice"):
        arms.unique_names([paths[0], tmp_path / "b" / os.pardir / "a" / "seed1"])
