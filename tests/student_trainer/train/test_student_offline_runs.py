"""A run on a file of answers is the run on the daemon: same bits, interrupted, resumed, changed over or not."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, TeacherStarter, write_tiny_teacher
from support.random_city import write_random_store
from support.recipes import HISTORY
from support.runs import assert_same_runs, start_until_killed, train_here
from support.trials import SMALL, tune_settings

from shared.errors import CompatibilityError
from shared.store import Store
from student_trainer.distill.config import DistillConfig
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.train.run import run as run_train
from student_trainer.tune import plan, trial
from student_trainer.tune import run as tuning
from student_trainer.tune.config import TuneConfig
from teacher_server.__main__ import main as teacher_main
from teacher_server.offline.config import AnswerConfig

SETTINGS = (
    "model.road_id_dim=8",
    "model.road_attr_dim=2",
    "optim.epochs=4",
    "optim.batch_size=8",
    "log.tensorboard=false",
    "log.every=2",
    "log.checkpoint_every=3",
    "runtime.threads=1",
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = write_random_store(tmp_path / "store", trips=40)
    write_tiny_teacher(tmp_path / "teacher", tokeniser=store.tokeniser)
    return store


def answers_of(store: Store, name: str = "answers", *settings: str) -> str:
    out = store.path.parent / name
    command = ["answer", "--data", str(store.path), "--teacher", str(store.path.parent / "teacher"), "--out", str(out)]
    assert teacher_main([*command, "engine.device=cpu", *settings]) == 0
    return f"file:{out}"


def words(store: Store, teacher: str, out: Path, *more: str) -> list[str]:
    """Of a small run, behind `train`."""
    return ["--data", str(store.path), "--teacher", teacher, "--out", str(out), *more, *SETTINGS]


def train_until_killed(moment: str, number: int, *arguments: str) -> None:
    process = start_until_killed(moment, number, *arguments)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.parametrize(
    "distill", [("distill.window=3", "distill.history=window"), ("distill.window=0", "distill.history=sequence")]
)
def test_a_run_on_answers_has_the_bits_of_one_on_the_daemon(
    tmp_path: Path, store: Store, running_teacher: TeacherStarter, distill: tuple[str, ...]
) -> None:
    """Killed twice and resumed, first from the daemon, then from the file."""
    answers = answers_of(store, "answers", distill[0].replace("distill.window", "windows"))
    with running_teacher(tmp_path / "teacher") as server:
        train_here(*words(store, server.address, tmp_path / "daemon", *distill))
        train_until_killed("save", 2, *words(store, server.address, tmp_path / "cut", *distill))
    train_here(*words(store, answers, tmp_path / "file", *distill))
    assert_same_runs(tmp_path / "daemon", tmp_path / "file")
    train_until_killed("replace", 5, *words(store, answers, tmp_path / "cut", *distill, "--resume"))
    train_here(*words(store, answers, tmp_path / "cut", *distill, "--resume"))
    assert_same_runs(tmp_path / "daemon", tmp_path / "cut")


def settings(store: Store, teacher: str, out: Path, **changed: Any) -> TrainConfig:
    sections = {name: value | changed.get(name, {}) for name, value in SMALL.items()} | {
        name: value for name, value in changed.items() if name not in SMALL
    }
    return TrainConfig.model_validate({"data": store.path, "teacher": teacher, "out": out, **sections})


def test_a_run_goes_on_with_the_answers_of_the_same_weights_only(tmp_path: Path, store: Store) -> None:
    answers, out = answers_of(store), tmp_path / "run"
    run_train(settings(store, answers, out, optim={"epochs": 1}))
    write_tiny_teacher(tmp_path / "teacher", seed=1, tokeniser=store.tokeniser)
    others = answers_of(store, "others")
    with pytest.raises(CompatibilityError, match="the run was distilled from teacher weights"):
        run_train(settings(store, others, out, optim={"epochs": 1}, resume=True))
    (tmp_path / "answers").rename(tmp_path / "moved")
    run_train(settings(store, f"file:{tmp_path / 'moved'}", out, optim={"epochs": 1}, resume=True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"distill": {"window": 3}}, "distill.window is 3, theirs 4"),
        ({"distill": {"window": 0}}, "distill.window is 0, theirs 4"),
        ({"batch": {"max_steps": 3}}, "batch.max_steps is 3, theirs 0"),
        ({"batch": {"candidate_top_k": 2}}, "batch.candidate_top_k 2 would leave out"),
    ],
)
def test_answers_that_do_not_fit_end_a_run_before_it_begins(
    tmp_path: Path, store: Store, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(CompatibilityError, match=message):
        run_train(settings(store, answers_of(store), tmp_path / "run", **changed))
    assert not (tmp_path / "run").exists()


def test_steps_may_be_cut_as_the_answers_were(tmp_path: Path, store: Store) -> None:
    answers = answers_of(store, "answers", "max_steps=3")
    run_train(settings(store, answers, tmp_path / "run", optim={"epochs": 1}, batch={"max_steps": 3}))


def test_the_wrong_trips_end_a_run_with_what_to_do_and_a_checkpoint(tmp_path: Path, store: Store) -> None:
    """A store that says it is the one that the answers are of, and has other trips."""
    answers = answers_of(store)
    more = write_random_store(tmp_path / "more", trips=400)
    with pytest.raises(CompatibilityError, match=r"lack a position.*sampled=DIR.*go on with --resume"):
        run_train(settings(more, answers, tmp_path / "run", distill=HISTORY))
    assert (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_the_wrong_trips_are_found_by_the_fit_before_the_first_step(tmp_path: Path, store: Store) -> None:
    """There is no step to go on from, and nothing to remove."""
    answers = answers_of(store)
    more = write_random_store(tmp_path / "more", trips=400)
    with pytest.raises(CompatibilityError, match=r"lack a position.*sampled=DIR"):
        run_train(settings(more, answers, tmp_path / "run"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("job", ["train", "tune"])
def test_a_missing_file_is_said_before_the_trainer_is_imported(tmp_path: Path, store: Store, job: str) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "student_trainer", job, "--data", str(store.path)]
    done = subprocess.run(
        [*command, "--teacher", f"file:{tmp_path / 'nothing'}", "--out", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == 2 and "no answers file at" in done.stderr
    assert "| torch\n" not in done.stderr


def test_trials_train_on_answers(tmp_path: Path, store: Store) -> None:
    answers = answers_of(store, "answers", "windows=2,4")
    recipe = RecipeConfig.model_validate(SMALL | {"distill": {"window": 2}})
    task = trial.Task(store.path, answers, recipe, 2, (5,), "accuracy", "g", "n")
    result = trial.train(task, tmp_path / "trial", lambda epoch, values: False)
    assert result["teacher_positions"] > 0
    values = {"seed": 5, "distill": {"window": 2}, "optim": {"epochs": 2}}
    run_train(settings(store, answers, tmp_path / "alone", **values))
    assert_same_runs(tmp_path / "trial" / "seed5", tmp_path / "alone")


def test_a_study_needs_answers_of_all_windows_that_it_searches(tmp_path: Path, store: Store) -> None:
    """Those between the ends, too; the settings that are not searched may be what the answers lack."""
    some, whole = answers_of(store, "some", "windows=2,3,5"), answers_of(store, "all", "windows=2,3,4,5,6,7,8")

    def study(teacher: str, **given: Any) -> TuneConfig:
        settings = tune_settings(store, tmp_path / "study", teacher=teacher, **given)
        plan.check(settings)
        return settings

    with pytest.raises(CompatibilityError, match=r"distill.window is 4, theirs 2, 3, 5"):
        tuning._check_teacher(study(some))
    few = {"distill.window": {"choices": [3, 5]}}
    assert tuning._check_teacher(study(some, space=few, points=[])) == tuning._check_teacher(study(whole))
    with pytest.raises(CompatibilityError, match=r"batch.max_steps is 1, theirs 0"):
        tuning._check_teacher(study(some, space=few | {"batch.max_steps": {"low": 0, "high": 2}}, points=[]))


def test_the_window_is_the_trainers_unless_it_is_said() -> None:
    assert AnswerConfig(data=Path("s"), out=Path("o"), teacher=Path("t")).windows == (DistillConfig().window,)
    assert AnswerConfig(data=Path("s"), out=Path("o"), teacher=Path("t")).max_steps == RecipeConfig().batch.max_steps
