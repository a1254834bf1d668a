"""A trial is training runs: the same bits as `train`, pruned on the shared seeds, failed by its own fault only."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from conftest import TeacherStarter, write_tiny_teacher
from optuna.trial import TrialState
from support.random_city import write_random_sample, write_random_store
from support.runs import assert_same_runs
from support.setting_reads import reads_all_of, recorded_reads, settings_of
from support.trials import SMALL, phase_of, run_one, tune_settings

from shared import config
from shared.errors import ConfigError, FileFormatError, TrainingError, Unavailable
from shared.store import Store
from student_trainer.evaluate import headroom
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.train.run import run as run_train
from student_trainer.train.trips import open_trips, schedule_of
from student_trainer.tune import figures, folders, plan, results, trial, worker
from student_trainer.tune import run as tuning
from student_trainer.tune.config import PrunerConfig, SamplerConfig, TuneConfig
from student_trainer.tune.phases import Phase
from student_trainer.tune.slots import KILLED
from student_trainer.tune.space import Parameter


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return write_random_store(tmp_path / "store", trips=40)


@pytest.mark.integration
def test_a_trial_has_the_bits_of_train(tmp_path: Path, store: Store, running_teacher: TeacherStarter) -> None:
    """Seeds in step, interrupted and gone on with: as if each had been trained alone."""
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    recipe = RecipeConfig.model_validate(SMALL)
    with running_teacher(tmp_path / "teacher") as server:
        task = trial.Task(store.path, server.address, recipe, 3, (5, 6), "accuracy", "g", "n")

        def stop_at_two(epoch: int, values: trial.Values) -> bool:
            if epoch == 2:
                raise KeyboardInterrupt
            return False

        with pytest.raises(KeyboardInterrupt):
            trial.train(task, tmp_path / "trial", stop_at_two)
        seen: list[tuple[int, trial.Values]] = []
        result = trial.train(task, tmp_path / "trial", lambda epoch, values: bool(seen.append((epoch, values))))
        alone = [tmp_path / "alone5", tmp_path / "alone6"]
        for seed, out in zip((5, 6), alone, strict=True):
            values = recipe.model_dump() | {"data": store.path, "teacher": server.address, "out": out, "seed": seed}
            run_train(TrainConfig.model_validate(values | {"optim": {**SMALL["optim"], "epochs": 3}}))
    for seed, out in zip((5, 6), alone, strict=True):
        assert_same_runs(tmp_path / "trial" / f"seed{seed}", out)
    best = [json.loads((out / "summary.json").read_text())["best"]["accuracy"] for out in alone]
    assert result["values"] == [pytest.approx(sum(best) / 2, abs=0)]
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    assert result["teacher_positions"] > 0 and result["teacher_seconds"] >= 0


def test_a_trial_trains_its_seeds_and_is_kept_under_its_state(tmp_path: Path, store: Store) -> None:
    settings = tune_settings(store, tmp_path / "out", seeds=[1, 2], space={"optim": {"warmup": {"low": 0, "high": 1}}})
    phase = phase_of(settings)
    ended = run_one(phase)
    assert ended.state == TrialState.COMPLETE
    folder = folders.find(phase, ended)
    assert folder is not None and folder.name == "trial_000_distilled_complete"
    runs = [config.load(TrainConfig, "train", [folder / f"seed{seed}" / "config.yaml"]) for seed in (1, 2)]
    assert [run.seed for run in runs] == [1, 2]
    assert {run.optim.warmup for run in runs} == {ended.params["optim.warmup"]}
    assert {run.log.wandb_group for run in runs} == {"study"}
    note = json.loads((folder / "trial.json").read_text())
    assert note["state"] == "complete" and note["values"] == ended.values
    accuracies = [[record["accuracy"] for record in note["runs"][seed]["history"]] for seed in ("1", "2")]
    assert ended.values == [pytest.approx(sum(map(max, accuracies)) / 2)]
    assert list(ended.intermediate_values) == [1, 2, 3]


def test_pruned_is_not_failed(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = phase_of(tune_settings(store, tmp_path / "out", seeds=[1, 2]))
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: True)
    ended = run_one(phase)
    assert ended.state == TrialState.PRUNED and list(ended.intermediate_values) == [1]
    note = json.loads((folders.path(phase, ended, "pruned") / "trial.json").read_text())
    assert note["pruned"] and [len(run["history"]) for run in note["runs"].values()] == [1, 1]  # on the same seeds


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), TrainingError("not finite"), ZeroDivisionError("a bug")]
)
def test_an_error_of_its_own_is_a_failure_with_its_traceback(
    error: Exception, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    phase = phase_of(tune_settings(store, tmp_path / "out", max_failures=1))
    monkeypatch.setattr(trial, "train", fail)
    ended = run_one(phase)
    assert ended.state == TrialState.FAIL
    assert f"{type(error).__name__}: {error}" == ended.user_attrs["error"]
    assert "in fail" in ended.user_attrs["traceback"]
    assert json.loads((folders.path(phase, ended, "failed") / "trial.json").read_text())["traceback"]
    phase.slots.fill(phase.fixed)
    assert phase.slots.claim(phase.make_sampler).number == 1  # type: ignore[union-attr]  # not tried again
    worker.check_failures(phase)
    phase.slots.reap()
    claimed = phase.slots.claim(phase.make_sampler)
    assert claimed is not None
    worker.run_trial(phase, phase.slots._storage, claimed, os.getppid())
    with pytest.raises(TrainingError, match=r"2 of the trials of phase 1 failed.*go on with a larger max_failures"):
        worker.check_failures(phase)


@pytest.mark.parametrize("error", [Unavailable("gone"), KeyboardInterrupt()])
def test_what_is_not_its_fault_is_tried_again(
    error: BaseException, tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise error

    phase = phase_of(tune_settings(store, tmp_path / "out"))
    monkeypatch.setattr(trial, "train", fail)
    with pytest.raises(type(error)):
        run_one(phase)
    monkeypatch.undo()
    phase.slots.fill(phase.fixed)
    again = run_one(phase)
    first = phase.slots.study.trials[0]
    assert again.user_attrs["retry_of"] == 0 and again.params == first.params
    assert (first.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert [trial.number for trial in phase.slots.ended()] == [again.number]


def test_folders_of_killed_processes_get_their_names(tmp_path: Path, store: Store) -> None:
    """Of a trial that ended as its process was killed, and of one whose slot another machine has filled."""
    phase = phase_of(tune_settings(store, tmp_path / "out"))
    ended = run_one(phase)
    kept = folders.find(phase, ended)
    assert kept is not None
    kept.rename(folders.path(phase, ended, "running"))
    lost = phase.slots.claim(phase.make_sampler)
    assert lost is not None
    phase.task(lost)
    folders.path(phase, lost, "running").mkdir()
    phase.slots.lose(lost, KILLED, "its process is gone")
    phase.slots.fill(phase.fixed)
    folders.tidy(phase)
    assert (
        folders.find(phase, ended) == kept and folders.path(phase, lost, "running").is_dir()
    )  # who comes next goes on with it
    again = phase.slots.claim(phase.make_sampler)
    assert again is not None and again.user_attrs["retry_of"] == lost.number
    phase.slots.tell(again, TrialState.COMPLETE, [0.5])
    folders.tidy(phase)
    assert (
        json.loads((folders.path(phase, lost, "failed") / "trial.json").read_text())["error"] == "its process is gone"
    )


def test_final_runs_are_measured_on_the_test_split(tmp_path: Path, store: Store) -> None:
    settings = tune_settings(store, tmp_path / "out", skip=[0, 1, 2])
    phase = phase_of(settings, 3)
    for _ in settings.final.seeds:
        run_one(phase)
    names = sorted(path.name for path in (settings.out / "optuna_trials").iterdir())
    assert names == ["final_seed3_vanilla_complete", "final_seed4_vanilla_complete"]
    trips = store.trips("test", "ram")
    for ended, seed in zip(phase.slots.ended(), settings.final.seeds, strict=True):
        (measured,) = ended.user_attrs["result"]["final"].items()
        assert measured[0] == str(seed) and measured[1]["positions"] == int((trips.lengths - 1).sum())


def test_vanilla_makes_the_steps_of_the_distilled_student_on_labelled_trips(tmp_path: Path, store: Store) -> None:
    sampled = write_random_sample(tmp_path / "sampled", store)
    batch = {"sampled": str(sampled), "sampled_share": 1, "train_trips": 10}
    taught = {"sampled_weight": 0.5, "sampled_labels": 0.1}
    settings = tune_settings(
        store, tmp_path / "out", teacher="fake:1", train=SMALL | {"batch": batch, "distill": taught}
    )
    steps, plans = {}, {}
    for number in (2, 3):
        phase = phase_of(settings, number)
        claimed = phase.slots.claim(phase.make_sampler)
        assert claimed is not None
        run = phase.task(claimed).settings(tmp_path / "run", 0)
        run.check_effects()
        found = open_trips(store, run)
        steps[phase.arm] = schedule_of(found, run).total_steps
        plans[phase.arm] = str(found)
    assert plans["distilled"].startswith("10 training trips 3 times an epoch and 30 sampled ones until epoch 2")
    assert plans["vanilla"].startswith("10 training trips 6 times an epoch, ")
    assert steps["vanilla"] == pytest.approx(steps["distilled"], rel=0.15)


def test_two_objectives_have_a_front(tmp_path: Path, store: Store) -> None:
    space = {"optim": {"warmup": {"low": 0, "high": 1}}}
    phase = phase_of(tune_settings(store, tmp_path / "out", objective="accuracy+step_time", space=space))
    run_one(phase)
    run_one(phase)
    assert all(len(ended.values) == 2 and ended.values[1] > 0 for ended in phase.slots.ended())
    written = figures.write(phase.slots.study, tmp_path / "figures", "accuracy+step_time", None)
    assert phase.slots.study.best_trials and "pareto_front" in written
    assert results.summarise(phase.settings, [phase])["pareto_front"]


class InProcess:
    """The workers in the process that starts them, so that what they read is seen."""

    def __init__(self, settings: TuneConfig, revision: str) -> None:
        self._settings, self._revision = settings, revision

    def __enter__(self) -> InProcess:
        worker.work(plan.make(self._settings), self._revision, os.getppid())
        return self

    def __exit__(self, *_: object) -> None: ...

    def check(self, refill: Any) -> None: ...

    def forgive(self) -> None: ...


@pytest.mark.integration
@reads_all_of("tune")
def test_tune_reads_all(
    tmp_path: Path, store: Store, running_teacher: TeacherStarter, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Every setting of its own, and all that a study leaves behind."""
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    monkeypatch.setattr(tuning, "WorkerPool", InProcess)
    with running_teacher(tmp_path / "teacher") as server:
        settings = tune_settings(
            store, tmp_path / "out", teacher=server.address, trials=11, epochs=2, sampler={"name": "cmaes"},
            pruner={"name": "hyperband", "min_epochs": 1, "reduction": 2}, final={"epochs": 1, "seeds": [7, 8]},
        )  # fmt: skip
        with recorded_reads() as reads:
            assert tuning.run(settings) == 0
            shown = capsys.readouterr()
            plan.make(settings.model_copy(update={"pruner": PrunerConfig(name="median", startup=2, min_epochs=1)}))
            Parameter(choices=(1, 2)).grid()
            lose_one(phase_of(tune_settings(store, tmp_path / "lost")))
        found = json.loads(shown.out)
        ends = shown.err.splitlines()
        own = {setting for setting in settings_of(TuneConfig) if setting[0] not in names_of(RecipeConfig)}
        own |= {(schema.__name__, name) for schema in (SamplerConfig, Parameter) for name in schema.model_fields}
        assert own <= reads
        with pytest.raises(ConfigError, match=r"study-vanilla is there with other settings: seeds was \[0\], is \[9\]"):
            tuning.run(settings.model_copy(update={"seeds": (9,)}))
        with pytest.raises(ConfigError, match=r"study-vanilla is there with other settings: seeds was \[0\], is \[9\]"):
            tuning.run(settings.model_copy(update={"seeds": (9,), "dry_run": True}))
        with pytest.raises(ConfigError, match="is the directory of study study"):
            tuning.run(settings.model_copy(update={"study": "other"}))
        capsys.readouterr()
        assert tuning.run(settings.model_copy(update={"skip": (0, 3)})) == 0
        assert json.loads(capsys.readouterr().out) == found, "what is left out was done before, and is told"
    folder = tmp_path / "out" / "optuna_results" / "study"
    assert found["out"] == str(folder)
    assert ends[-2:] == [found["verdict"], f"open {folder / 'study.html'}"]
    summary = json.loads((folder / "study_summary.json").read_text())
    assert [phase["filled"] for phase in summary["phases"]] == [1, 11, 2, 2]
    assert summary["generations"]["complete"] >= 1  # CMA-ES, from the study's system attributes
    final = json.loads((folder / "final_results.json").read_text())
    assert final["seeds"] == [7, 8] and "nothing is claimed" in final["verdict"]
    runs = [*(tmp_path / "out").rglob("final_seed*_distilled_complete/seed*/summary.json")]
    left = [headroom.left(json.loads(path.read_text())["headroom"]) for path in runs]
    assert len(left) == 2 and final["headroom"]["nll"] == pytest.approx(sum(of["nll"] for of in left) / 2)
    assert "ceiling, estimated on validation trips" in (folder / "study.html").read_text()
    best = folder / "best_trial"
    assert best.resolve().name == f"{summary['best_trial']}_complete"
    recipe = config.load(TrainConfig, "train", [folder / "best_params.yaml"], ["data=d", "out=o"])
    assert recipe.distill.weight == summary["best_params"]["distill.weight"]
    assert recipe.optim.epochs == TrainConfig.model_fields["optim"].default.epochs  # the study's are 2 and 1
    assert "nothing is claimed" in (folder / "study.html").read_text()
    pictures = {path.suffix for path in (folder / "figures").iterdir()}
    assert pictures == {".html", ".png", ".js"}
    library = folder / "figures" / "plotly.min.js"
    pages = list((folder / "figures").glob("*.html"))
    assert all(library.name in page.read_text() for page in pages)
    assert sum(page.stat().st_size for page in pages) < library.stat().st_size, "the library is there once"


def test_a_dry_run_refuses_what_the_study_would(tmp_path: Path, store: Store) -> None:
    """Where nothing need be asked, and without a trace."""
    dry = {"dry_run": True, "space": {"optim": {"warmup": {"low": 0, "high": 1}}}, "teacher": "fake:1"}
    assert tuning.run(tune_settings(store, tmp_path / "new", **dry)) == 0
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("train: {}\n")
    for name, message in {"file": "is not a directory", "other": "is not the directory of a study"}.items():
        with pytest.raises(ConfigError, match=message):
            tuning.run(tune_settings(store, tmp_path / name, **dry))
    with pytest.raises(FileFormatError, match="no answers file"):
        tuning.run(tune_settings(store, tmp_path / "new", **dry | {"teacher": f"file:{tmp_path / 'file'}"}))


def lose_one(phase: Phase) -> None:
    """A worker of another machine, and what it leaves."""
    claimed = phase.slots.claim(phase.make_sampler)
    assert claimed is not None
    claimed.set_user_attr("worker", "elsewhere/1/0.0")
    phase.slots.reap()
    phase.slots.lose(claimed, KILLED, "test")
    phase.slots.fill(phase.fixed)


def names_of(schema: type) -> set[str]:
    """The schemas of a recipe, which `train`'s own test has."""
    return {name for name, _ in settings_of(schema)} | {schema.__name__}
