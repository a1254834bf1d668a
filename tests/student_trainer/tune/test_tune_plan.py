"""What a study will do is told before it starts, and refused where it cannot work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from support.students import widths_of

from shared import config
from shared.errors import ConfigError
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.tune import plan, results, samplers, space
from student_trainer.tune.config import PrunerConfig, TuneConfig
from student_trainer.tune.space import Parameter


def settings(*overrides: str) -> TuneConfig:
    return config.load(TuneConfig, "tune", [], ["data=d", "out=o", "teacher=a:1", *overrides])


def told(*overrides: str, seconds: float | None = None) -> str:
    return "\n".join(plan.make(settings(*overrides)).lines(seconds))


def test_the_default_works_and_is_told() -> None:
    text = told(seconds=60.0)
    for part in (
        "distill.weight           0.001 to 10 (log)",
        "phase 1: search: 24 trials of at most 8 epochs",
        "generations of 7 trials: the budget completes 3",
        "bracket 0: judged after 2, 6 epochs",
        "bracket 1: judged after 6 epochs",
        "phase 3: vanilla, 25 epochs, seeds 42, 43, 44 (at most 75 epochs of training, about 75 min)",
        "3 seeds cannot show that a difference is real (the smallest exact p-value is 0.25, above 0.05); 6 seeds can",
    ):
        assert part in text


REFUSED = {
    "a single bracket": (("epochs=5",), "hyperband has a single bracket .* give epochs=6 or more"),
    "nothing to prune": (("epochs=2",), "leaves nothing to prune"),
    "one generation": (("trials=8",), r"completes 1 generations of 4 with trials=8.* give trials=11 or more"),
    "many workers": (("trials=12", "workers=4"), "completes 1 generations"),
    "cmaes and choices": (("space.distill.history.choices=[window,sequence]",), "has no order; use sampler.name=tpe"),
    "two objectives pruned": (("objective=accuracy+step_time",), "cannot be pruned"),
    "two objectives, cmaes": (("objective=accuracy+step_time", "pruner.name=none"), "cmaes has one objective"),
    "endless grid": (("sampler.name=grid",), "distill.weight has no step"),
    "other grid": (
        ("sampler.name=grid", "space.distill.weight.choices=[1,2]", "space.distill.temperature=null"),
        "has 14 points; set trials=14",
    ),
    "median of nobody": (("pruner.name=median", "pruner.startup=24"), "judges none"),
    "no such setting": (("space.distill.wait={low: 1, high: 2}",), "unknown setting distill.wait"),
    "no such value": (("space.distill.temperature.low=0",), r"space: distill.temperature=0.0: .*greater than 0"),
    "shared setting": (("space.optim.epochs={low: 1, high: 2}",), "all trials must have the same optim.epochs"),
    "the seed": (("space.seed={low: 1, high: 2}",), "all trials must have the same seed"),
    "point outside": (("points=[{distill.weight: 20}]",), "points: distill.weight=20 is not within 0.001 to 10"),
    "point of nothing": (("points=[{optim.warmup: 0.1}]",), "optim.warmup is not searched"),
    "points above trials": (("trials=2",), "trials=2 is less than the 3 points tried first"),
    "no teacher": (("teacher=none",), "need a --teacher; leave them out with --skip 1,2"),
    "one seed": (("final.seeds=[1]",), "a single seed says nothing"),
    "nothing to mix": (("train.batch.sampled_trips=5",), r"\A[^\n]*are of sampled trips; give batch.sampled=DIR\Z"),
    "nothing that collides": (
        ("space.distill.collisions.choices=[marginal,duplicate]", "train.distill.head=0", "sampler.name=random"),
        r"\Aspace: at distill.weight=0.001, [^\n]*, distill.collisions=duplicate: distill.collisions=duplicate is of",
    ),
    "nothing searched": (("space={distill: {weight: null, temperature: null, window: null}}",), "nothing is searched"),
}


@pytest.mark.parametrize(("overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_impossible_studies_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan.make(settings(*overrides))


def test_all_that_makes_a_study_impossible_is_said_at_once() -> None:
    """Who mends one reason does not meet the next."""
    overrides = (
        "teacher=none", "final.seeds=[1]", "space.distill.temperature.low=0", "space.optim.epochs={low: 1, high: 2}",
        "space.distill.wait={low: 1, high: 2}", "points=[{distill.weight: 20}, {optim.warmup: 0.1}]", "epochs=5",
        "trials=8",
    )  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        plan.make(settings(*overrides))
    first, *reasons = str(caught.value).splitlines()
    assert first == "9 reasons why this study cannot work:"
    for reason, part in zip(
        reasons,
        (
            "space: distill.temperature=0.0: ", "unknown setting distill.wait", "must have the same optim.epochs",
            "need a --teacher", "a single seed says nothing", "a single bracket", "distill.weight=20 is not within",
            "optim.warmup is not searched", "completes 1 generations",
        ),
        strict=True,
    ):  # fmt: skip
        assert part in reason


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("seeds=[1,1]",), "seeds: give at least one, each once"),
        (("skip=4",), "there is no phase 4"),
        (("skip=0,1,2,3",), "all phases are left out"),
        (("storage.stale_seconds=20",), "at least three heartbeats"),
        (("space.distill.weight.low=11",), "low must be below high"),
        (("space.distill.weight={choices: [1, 2], low: 1}",), "choices or a range"),
        (("space.distill.weight={log: true, low: 0}",), "log needs low above 0"),
        (("study=../x",), "study"),
    ],
)
def test_settings_that_contradict_each_other(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(*overrides)


def test_vanilla_alone_needs_no_teacher() -> None:
    assert plan.make(settings("teacher=none", "skip=1,2")).settings.phases == (0, 3)
    assert plan.make(settings("teacher=none", "skip=1,2", "train.batch.sampled=s")).settings.phases == (0, 3)


def test_the_space_is_laid_over_the_default_and_survives_being_saved(tmp_path: Path) -> None:
    """Nested, dotted, removed and narrowed; a worker reads what its parent saved."""
    given = settings(
        "space.distill.window=null", "space.distill.weight.low=0.1", "space={optim.warmup: {low: 0, high: 0.5}}"
    )
    assert list(given.space) == ["distill.weight", "distill.temperature", "optim.warmup"]
    assert given.space["distill.weight"] == Parameter(low=0.1, high=10.0, log=True)
    assert isinstance(given.space["optim.warmup"].low, float)  # of a setting that is no integer
    config.save(given, "tune", tmp_path / "tune.yaml")
    assert config.load(TuneConfig, "tune", [tmp_path / "tune.yaml"]) == given


def test_points_that_did_well_are_tried_where_the_space_has_them() -> None:
    narrow = settings("space.distill.weight.high=0.5", "space.distill.window=null").space
    assert space.recommended(narrow) == ({"distill.weight": 0.3, "distill.temperature": 1.0},)


def test_a_grid_has_every_point_once() -> None:
    found = plan.make(
        settings(
            "sampler.name=grid",
            "trials=12",
            "space.distill.window=null",
            "space.distill.weight={choices: [0.1, 1, 10]}",
            "space.distill.temperature={low: 1, high: 2.5, step: 0.5}",
        )
    ).points
    assert {(p["distill.weight"], p["distill.temperature"]) for p in found} == {
        (weight, temperature) for weight in (0.1, 1, 10) for temperature in (1.0, 1.5, 2.0, 2.5)
    }


def test_a_setting_is_applied_where_it_belongs() -> None:
    recipe = space.apply(RecipeConfig(), {"distill.weight": 2.0, "optim.batch_size": 7})
    assert (recipe.distill.weight, recipe.optim.batch_size) == (2.0, 7)
    assert recipe.distill.temperature == RecipeConfig().distill.temperature


def test_the_best_setting_does_not_carry_the_budget_of_its_search(tmp_path: Path) -> None:
    """A full run from it trains as long, on as many trips, and on the machine, that it would without."""
    given = settings(
        "epochs=2", "train.batch.train_trips=500", "train.batch.val_trips=100", "train.batch.sample_seed=3",
        "train.runtime.threads=1", "train.log.tensorboard=false", "train.client.lookahead=2", "final.epochs=3",
        "train.optim.batch_size=32", "train.model.road_id_dim=32", "train.batch.max_steps=50", "pruner.name=none",
    )  # fmt: skip
    path = tmp_path / "best_params.yaml"
    path.write_text(results.best_params(given, {"distill.weight": 2.5, "distill.window": 6}))
    found = config.load(TrainConfig, "train", [path], ["data=d", "out=o"])
    plain = TrainConfig(data=Path("d"), out=Path("o"))
    assert (found.optim.epochs, found.batch.train_trips, found.batch.val_trips) == (plain.optim.epochs, 0, 0)
    assert (found.batch.sample_seed, found.runtime, found.log, found.client) == (
        plain.batch.sample_seed, plain.runtime, plain.log, plain.client,
    )  # fmt: skip
    assert (found.distill.weight, found.distill.window, found.optim.batch_size) == (2.5, 6, 32)
    assert (widths_of(found.model).road_id_dim, found.batch.max_steps) == (32, 50)
    assert "# Found with 2 epochs of 500 training trips; its final runs had 3 epochs." in path.read_text()
    searched = results.best_params(given, {"batch.train_trips": 200})  # no budget, but what was looked for
    path.write_text(searched)
    assert config.load(TrainConfig, "train", [path], ["data=d", "out=o"]).batch.train_trips == 200


@pytest.mark.parametrize("epochs", range(2, 60))
@pytest.mark.parametrize(("least", "reduction"), [(1, 2), (2, 3), (1, 3), (3, 4)])
def test_brackets_are_those_of_optuna(least: int, reduction: int, epochs: int) -> None:
    """Its count is by floating-point logarithms; where it rounds, as for 27 / 1, ours may have one more."""
    if epochs < least:
        return
    pruner = optuna.pruners.HyperbandPruner(least, epochs, reduction)
    pruner._try_initialization(optuna.create_study())
    ours = samplers.brackets(PrunerConfig(min_epochs=least, reduction=reduction), epochs)
    assert len(ours) == pruner._n_brackets
    for bracket, rungs in enumerate(ours):
        assert all(least * reduction**bracket <= rung < epochs for rung in rungs)


def test_expected_epochs_of_a_plan_are_between_the_bounds() -> None:
    found = plan.make(settings("seeds=[0,1]"))
    assert found.epochs == {0: 16, 1: 384, 2: 75, 3: 75}
    assert 24 * 2 * 2 < found.expected < 384


def test_a_proposal_depends_on_its_slot_and_the_past_alone() -> None:
    """Two processes that ask for different slots at once do not propose the same; the same slot gets the same."""

    def proposals(name: str, slots: list[int]) -> list[dict[str, Any]]:
        study = optuna.create_study(direction="maximize")
        for x in (0.2, 0.4, 0.9):
            distributions: dict[str, optuna.distributions.BaseDistribution] = {
                "x": optuna.distributions.FloatDistribution(0, 1),
                "y": optuna.distributions.FloatDistribution(0, 1),
            }
            study.add_trial(optuna.trial.create_trial(params={"x": x, "y": x}, distributions=distributions, value=x))
        found = []
        for slot in slots:
            study.sampler = samplers.make_sampler(settings(f"sampler.name={name}").sampler, 4, slot, True)
            trial = study.ask()
            trial.suggest_float("x", 0, 1)
            trial.suggest_float("y", 0, 1)
            found.append(trial.params)
        return found

    for name in ("cmaes", "tpe", "random"):
        both = proposals(name, [3, 4])
        assert both[0] != both[1]
        assert proposals(name, [3])[0] == both[0]
