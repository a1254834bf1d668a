"""Which runs are seeds of one arm, what it is called, and what it is compared with."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from support.random_city import write_random_store
from support.trained_runs import write_run

from shared import files
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
        (("vanilla1", "vanilla2"), "vanilla"),
        (("vanilla1", "vanilla10"), "vanilla"),
        (("a-s1", "a-s2"), "a"),
        (("plain-seed1", "plain-s2"), "plain"),
        (("r1dist", "r1dup"), "r1"),
        (("distilled", "dup"), "vanilla"),
        (("distilled", "distill"), "vanilla"),
        (("1stplain", "2ndplain"), "vanilla"),
    ],
)
def test_an_arm_is_called_what_its_runs_share(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    models = [Model(name, trained(tmp_path / str(seed), seed=seed)) for seed, name in enumerate(names)]
    assert [arm.name for arm in arms.group(models)] == [expected]


def test_one_run_is_not_two_of_an_arm(tmp_path: Path) -> None:
    """Nor where one is the checkpoint and the other was exported from it; other searches are other arms."""
    best = write_run(tmp_path / "run", a_store(tmp_path), 1)
    exported = best.parents[1] / "hoser.pth"
    checkpoints.save_tensors(exported, {"w": torch.zeros(1)})

    def model(name: str, path: Path, search: str = "beam") -> Model:
        found = training.read(path)
        assert found is not None
        known = found.as_dict()
        return Model(name, known, search, weights=arms.weights_of(known, files.file_digest(path)))

    for path in (best, exported):
        with pytest.raises(ConfigError, match=r"r1 and copy have the same weights .* one run, .*leave one of them out"):
            arms.group([model("r1", best), model("copy", path)])
    assert len(arms.group([model("r1", best), model("greedy", best, "greedy")])) == 2
    unknown = [Model(name, None, weights="the same") for name in ("downloaded", "again")]
    assert len(arms.group(unknown)) == 2, "of unknown training: each is an arm of its own"
    other = model("r2", write_run(tmp_path / "other", a_store(tmp_path), 2))
    assert [arm.models for arm in arms.group([model("r1", best), other])] == [("r1", "r2")]


def test_steps_are_those_of_the_whole_run(tmp_path: Path) -> None:
    """Whichever epoch was its best: as the summary says, or the newest checkpoint; a file alone has those planned."""
    best = write_run(tmp_path / "run", a_store(tmp_path), 1, optim={"epochs": 4})
    values = checkpoints.load(best)

    def save(path: Path, step: int, epoch: int) -> Path:
        history: list[dict[str, float]] = [{"epoch": k, "step": 10 * k} for k in range(1, epoch + 1)]
        progress = checkpoints.Progress(step=step, best_epoch=2, history=history)
        checkpoints.save(path, dataclasses.replace(values, progress=progress))
        return path

    def steps(path: Path) -> int | None:
        found = training.read(path)
        assert found is not None
        return found.steps

    assert steps(best) is None, "nothing says it"
    exported = tmp_path / "run" / "hoser.pth"
    checkpoints.save_tensors(exported, {"w": torch.zeros(1)})
    assert steps(save(best, 20, 2)) == steps(exported) == 40
    save(best.with_stem("last"), 33, 3)
    assert steps(best) == steps(exported) == 33
    (tmp_path / "run" / "summary.json").write_text('{"steps": 40}')
    assert steps(best) == steps(exported) == 40
    assert steps(save(tmp_path / "alone.pt", 20, 2)) == 40
    best.unlink()
    assert steps(exported) == 40, "by what its run has written"
    (tmp_path / "run" / "summary.json").write_text("[]")
    best.with_stem("last").write_bytes(b"damaged")
    assert steps(exported) is None


def test_other_numbers_of_steps_are_told_and_split_no_arm() -> None:
    def model(name: str, teacher: str, seed: int, steps: int | None) -> Model:
        known = {"seed": seed, "teacher": teacher, "store": "s", "settings": {}}
        return Model(name, known if steps is None else {**known, "steps": steps})

    plain = [model("plain-s1", "", 1, 52), model("plain-s2", "", 2, 50), model("plain-s3", "", 3, None)]
    aided = [model("aided-s1", "t", 1, 1806), model("aided-s2", "t", 2, 1806)]

    def note(*models: Model) -> str:
        found = arms.group(models)
        return arms.steps_note(arms.in_order(found, arms.choose_baseline(found, "")))

    assert [arm.steps for arm in arms.group([*plain, *aided])] == [(52, 50, None), (1806, 1806)]
    said = "part of a difference may be the steps'; see docs/trips.md"
    assert note(*aided, *plain) == f"aided trained 1,806 steps, plain 51: {said}"
    third = model("third", "other", 1, 400)
    assert note(*aided, third, *plain) == f"aided trained 1,806 steps, third 400, plain 51: {said}"
    assert note(model("near", "t", 1, 54), plain[0]) == "", "within 5 %"
    assert note(aided[0], plain[2]) == note(plain[2], model("older", "t", 1, None)) == "", "older documents"


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
    digest = files.file_digest(tmp_path / "run" / "checkpoints" / "best.pt")
    assert found is not None and found.as_dict() == known | {"exported_from": digest}
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


@pytest.mark.parametrize(
    ("distill", "teacher"),
    [({"weight": 1}, "h:1"), ({"weight": 0, "head": 1}, "h:1"), ({"weight": 0, "sampled_weight": 0.5}, "h:1"),
     ({"weight": 0, "head": 0}, ""), ({}, "")],
)  # fmt: skip
def test_a_run_of_which_only_settings_are_left_was_taught_by_whatever_asked(
    tmp_path: Path, distill: dict[str, float], teacher: str
) -> None:
    (tmp_path / "config.yaml").write_text(json.dumps({"train": {"seed": 1, "teacher": "h:1", "distill": distill}}))
    found = training.of_run(tmp_path)
    assert found is not None and found.teacher == teacher


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
