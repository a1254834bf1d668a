"""The trips of a run, and the target that is fitted on those that it validates on."""

from __future__ import annotations

import functools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from support.fakes import FakeTeacher, scores_of
from support.random_city import write_random_sample, write_random_store
from support.recipes import HISTORY

from shared import ragged
from shared.errors import CompatibilityError, ConfigError, FileFormatError, TrainingError
from shared.store import Store
from shared.wire import ScoreQuery
from student_trainer.data.mixed import MixedTrips
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import differences, load_sampled, read_document, write_sampled
from student_trainer.data.turns import unseen_share
from student_trainer.distill.destination import FEATURES, choices_of
from student_trainer.distill.query import build_query
from student_trainer.runs import checkpoint as checkpoints
from student_trainer.train import destination_target, trips
from student_trainer.train.config import TrainConfig
from student_trainer.train.resume import find_checkpoint, target_of
from student_trainer.train.runtime import Runtime
from student_trainer.train.schedule import PlannedStep, Schedule
from student_trainer.train.session import Session

SMALL: dict[str, Any] = {
    "model": {"road_id_dim": 8, "road_attr_dim": 2},
    "optim": {"epochs": 1, "batch_size": 16},
    "log": {"tensorboard": False, "progress": False},
    "runtime": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store")


def settings_of(store: Store, out: Path, **changed: Any) -> TrainConfig:
    return TrainConfig.model_validate({"data": store.path, "out": out, "teacher": "fake:1", **SMALL, **changed})


def start(settings: TrainConfig, store: Store, teacher: FakeTeacher | None = None) -> Session:
    runtime = Runtime.of(settings.runtime, torch.device("cpu"))
    return Session(settings, store, runtime, teacher or FakeTeacher(), find_checkpoint(settings, store))


def coefficients(session: Session) -> np.ndarray:
    assert session.feed.target is not None and session.validator._feed.target is session.feed.target
    return session.feed.target.coefficients


def test_the_same_data_settings_and_answers_give_the_same_target(store: Store, tmp_path: Path) -> None:
    """To the bit, whatever the run's own seed, its batches and its sampled trips are."""
    sampled = write_random_sample(tmp_path / "sampled", store)
    first = coefficients(start(settings_of(store, tmp_path / "a", seed=1), store))
    others: tuple[dict[str, Any], ...] = ({"seed": 2}, {"optim": {"batch_size": 3}}, {"batch": {"sampled": sampled}})
    for number, changed in enumerate(others):
        teacher = FakeTeacher()
        session = start(settings_of(store, tmp_path / f"b{number}", **changed), store, teacher)
        assert np.array_equal(coefficients(session), first)
        asked = sum(query.positions for query in teacher.queries)
        assert asked == (store.trips("val").lengths - 1).sum()  # of validation trips alone
    few = coefficients(start(settings_of(store, tmp_path / "c", batch={"train_trips": 30}), store))
    assert np.array_equal(few, first)
    fewer = coefficients(start(settings_of(store, tmp_path / "d", batch={"val_trips": 15}), store))
    assert not np.array_equal(fewer, first)


def test_a_teacher_that_knows_its_own_trips_by_heart_is_trusted_as_it_deserves_elsewhere(
    store: Store, tmp_path: Path
) -> None:
    """It is sure of every next road of the training trips and knows nothing of most others."""
    token, train = RoadNetwork.load(store).road_token, store.trips("train")
    known = {tuple(token[part[:-1]]): token[part[1:]] for part in np.split(train.roads, train.offsets[1:-1])}

    def by_heart(query: ScoreQuery) -> np.ndarray:
        histories = np.split(query.history_tokens, np.cumsum(query.history_lengths)[:-1])
        following = np.concatenate([known.get(tuple(each), np.full(len(each), -1)) for each in histories])
        assert len(following) == query.positions
        is_it = query.candidate_tokens == np.repeat(following, query.candidate_lengths)
        return np.where(is_it, 0, -8).astype(np.float16)

    session = start(settings_of(store, tmp_path / "run"), store, FakeTeacher(scores=by_heart))
    trusted = destination_target.fit_target(session.feed, 60, 0).coefficients[0]
    assert 0 < coefficients(session)[0] < 0.3 * trusted


def test_it_is_the_likeliest_one(store: Store, tmp_path: Path) -> None:
    """Against a general optimiser on the likelihood, written out; with the same small penalty."""
    session = start(settings_of(store, tmp_path / "run"), store)
    batch, network = session.val_feed.prepare(np.arange(20)).batch, RoadNetwork.load(store)
    log_q = scores_of(build_query(batch, network, session.settings.distill)).astype(np.float64)
    x = np.concatenate([log_q[:, None], session.val_feed.features(batch)], axis=1)
    length, label = batch.candidate_length.numpy(), batch.label.numpy()
    first, row = ragged.offsets(length)[:-1], ragged.rows(length)
    several = length > 1
    told = x[several[row]]
    centred = told - (np.add.reduceat(x, first) / length[:, None])[row][several[row]]
    scale = np.sqrt((centred**2).mean(0))

    def loss(b: np.ndarray) -> float:
        total = 0.0
        for position in np.flatnonzero(several):
            scores = x[first[position] : first[position] + length[position]] @ (b / scale)
            total += np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label[position]]
        return total + 1e-3 * float((b**2).sum())

    assert x.shape[1] == len(FEATURES) and (scale > 0).all()
    found = coefficients(session) * scale
    best = minimize(loss, np.zeros(len(FEATURES)), method="BFGS", options={"gtol": 1e-6})
    assert loss(found) <= best.fun + 1e-6
    np.testing.assert_allclose(found, best.x, rtol=1e-3, atol=1e-3)


def test_of_many_validation_trips_a_sample_is_asked_about(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn by the seed of the data, not by the run's."""
    monkeypatch.setattr(destination_target, "TRIPS", 10)
    monkeypatch.setattr(destination_target, "BATCH", 4)
    found = []
    for name, seed, sample_seed in (("a", 1, 0), ("b", 2, 0), ("c", 1, 1)):
        teacher = FakeTeacher()
        settings = settings_of(store, tmp_path / name, seed=seed, batch={"sample_seed": sample_seed})
        found.append(coefficients(start(settings, store, teacher)))
        drawn = np.random.default_rng(sample_seed).permutation(20)[:10]
        assert [len(query.history_lengths) for query in teacher.queries] == [4, 4, 2]
        asked = sum(query.positions for query in teacher.queries)
        assert asked == (store.trips("val").lengths[drawn] - 1).sum()
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_a_run_goes_on_with_the_sampled_trips_of_its_beginning_wherever_they_are(store: Store, tmp_path: Path) -> None:
    sampled = write_random_sample(tmp_path / "sampled", store)
    batch = {"sampled": sampled, "sampled_share": 1.0}
    settings = settings_of(store, tmp_path / "run", batch=batch, optim={"epochs": 2, "batch_size": 16})
    next(start(settings, store).epochs())
    moved = settings.batch.model_copy(update={"sampled": sampled.rename(tmp_path / "moved")})
    resumed = settings.model_copy(update={"resume": True, "batch": moved})
    start(resumed, store).train()
    write_random_sample(sampled, store, seed=5)
    with pytest.raises(CompatibilityError, match=r"other trips than batch\.sampled has now .*moved then"):
        start(settings.model_copy(update={"resume": True}), store)


def test_another_teacher_is_told_before_the_target_is_looked_for(store: Store, tmp_path: Path) -> None:
    settings = settings_of(store, tmp_path / "run", teacher="none", optim={"epochs": 2, "batch_size": 16})
    next(start(settings, store).epochs())
    with pytest.raises(CompatibilityError, match="without a teacher, and there is one now: leave out --teacher"):
        start(settings.model_copy(update={"resume": True, "teacher": "fake:1"}), store)


def test_few_validation_trips_are_warned_of(store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start(settings_of(store, tmp_path / "run"), store)
    assert "positions are few for 7 coefficients" in caplog.text


def test_trips_that_do_not_belong_to_the_run_are_warned_of(store: Store, tmp_path: Path) -> None:
    known = {"teacher": {"revision": "a"}, "settings": {"train_trips": 30, "sample_seed": 0}}
    (folder := tmp_path / "sampled").mkdir()
    write_sampled(folder, store.trips("train"), store, known)
    of = functools.partial(differences, read_document(folder), folder)
    assert list(of("a", 30, 0)) == [] == list(of("", 30, 0))
    assert ["weights a, this run's has b" in told for told in of("b", 30, 0)] == [True]
    for wanted in ((20, 0), (30, 1), (0, 0)):
        (told,) = of("a", *wanted)
        assert "drawn with train_trips=30 sample_seed=0" in told


def test_a_resumed_run_takes_its_target_from_the_checkpoint(store: Store, tmp_path: Path) -> None:
    """And asks nothing; what it goes on with is not fitted anew, even to other answers."""
    settings = settings_of(store, tmp_path / "run", optim={"epochs": 2, "batch_size": 16})
    session = start(settings, store)
    next(session.epochs())
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    found = checkpoints.load(path)
    assert np.array_equal(found.distillation["target"].numpy(), coefficients(session))
    moved = found.distillation | {"target": found.distillation["target"] + 1}
    checkpoints.save(path, checkpoints.Checkpoint(**{**vars(found), "distillation": moved}))
    teacher = FakeTeacher()
    resumed = start(settings.model_copy(update={"resume": True}), store, teacher)
    assert np.array_equal(coefficients(resumed), coefficients(session) + 1) and not teacher.queries


@pytest.mark.parametrize("value", [None, torch.zeros(3, dtype=torch.float64)], ids=["none", "too few"])
def test_a_checkpoint_without_the_target_is_refused(store: Store, tmp_path: Path, value: torch.Tensor | None) -> None:
    settings = settings_of(store, tmp_path / "run", optim={"epochs": 2, "batch_size": 16})
    next(start(settings, store).epochs())
    found = checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt")
    rest = {name: tensor for name, tensor in found.distillation.items() if name != "target"}
    spoiled = rest if value is None else rest | {"target": value}
    with pytest.raises(FileFormatError, match="holds no 7 coefficients of a destination-aware target"):
        target_of(checkpoints.Checkpoint(**{**vars(found), "distillation": spoiled}))


def test_without_the_setting_nothing_is_fitted_or_kept(store: Store, tmp_path: Path) -> None:
    teacher = FakeTeacher()
    session = start(settings_of(store, tmp_path / "run", distill=HISTORY), store, teacher)
    assert session.feed.target is None and session.trainer.head is None and not teacher.queries
    session.train()
    assert checkpoints.load(tmp_path / "run" / "checkpoints" / "last.pt").distillation == {}


def test_candidates_that_are_cut_are_refused_before_anything_is_asked(store: Store, tmp_path: Path) -> None:
    """A way is known of every successor only; as many candidates as there are cut nothing."""
    teacher = FakeTeacher()
    with pytest.raises(ConfigError, match=r"up to 5 here; batch\.candidate_top_k 3 cuts them: set it to 0"):
        start(settings_of(store, tmp_path / "run", batch={"candidate_top_k": 3}), store, teacher)
    assert not teacher.queries
    start(settings_of(store, tmp_path / "run", batch={"candidate_top_k": 5}), store, teacher)


def test_validation_trips_without_a_choice_are_an_error(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_target, "choices_of", lambda *given: choices_of(*given).take(np.zeros(0, np.int64)))
    told = r"cannot be fitted on 20 validation trips: no position has a label .*\. Set distill\.target=history, or"
    with pytest.raises(TrainingError, match=told):
        start(settings_of(store, tmp_path / "run"), store)


def test_the_trips_of_a_run_are_the_labelled_ones_and_the_first_sampled_ones(store: Store, tmp_path: Path) -> None:
    sampled = write_random_sample(tmp_path / "sampled", store)
    settings = settings_of(
        store, tmp_path / "run", batch={"sampled": sampled, "sampled_trips": 12, "train_trips": 20, "val_trips": 5}
    )
    found = trips.open_trips(store, settings)
    chosen = np.sort(np.random.default_rng(0).permutation(60)[:20])
    assert np.array_equal(found.numbers, [*chosen, *range(60, 72)])
    assert isinstance(found.training, MixedTrips) and found.first_sampled == 60
    assert str(found) == "20 training trips and 12 sampled ones until epoch 1, 5 validation trips"
    plans = list(trips.schedule_of(found, settings).from_step(0))
    seen = np.concatenate([index for plan in plans for index in plan.micro_batches])
    assert np.array_equal(np.sort(seen), found.numbers)
    everything = trips.open_trips(store, settings_of(store, tmp_path / "run", batch={"sampled": sampled}))
    assert len(everything.numbers) == 60 + 30


def test_labelled_trips_may_come_several_times_an_epoch(store: Store, tmp_path: Path) -> None:
    """Each as often as any other, and sampled ones once; with none of these an epoch is that many passes."""
    sampled = write_random_sample(tmp_path / "sampled", store)
    batch = {"sampled": sampled, "sampled_trips": 12, "train_trips": 20, "labelled_passes": 3, "sampled_share": 1}
    for without in ({}, {"sampled": None, "sampled_trips": 0, "sampled_share": 0}):
        settings = settings_of(store, tmp_path / "run", batch=batch | without)
        found = trips.open_trips(store, settings)
        assert ("20 training trips 3 times an epoch" in str(found)) and len(found.numbers) == 20 + 12 * (not without)
        plans = list(trips.schedule_of(found, settings).from_step(0))
        assert len(plans) % settings.optim.epochs == 0
        for epoch in range(settings.optim.epochs):
            seen = [index for plan in plans if plan.epoch == epoch for index in plan.micro_batches]
            numbers, times = np.unique(np.concatenate(seen), return_counts=True)
            assert np.array_equal(numbers, found.numbers)
            assert times.tolist() == [3] * 20 + [1] * (len(numbers) - 20)


@pytest.mark.parametrize(
    ("labelled", "sampled", "told", "passes", "epochs"),
    [
        *((1_000, 24_000, {}, 1, 8), (2_800, 24_000, {}, 1, 6), (3_000, 24_000, {}, 8, 8), (4_000, 24_000, {}, 6, 8)),
        *((8_000, 24_000, {}, 3, 6), (10_000, 24_000, {}, 2, 4), (35_000, 24_000, {}, 1, 4)),
        *((100_000, 24_000, {}, 1, 4), (20, 0, {}, 1, 8), (20, 0, {"passes": 2}, 2, 8)),
        *((1_000, 24_000, {"passes": 8}, 8, 8), (1_000, 24_000, {"share": 0.5}, 1, 4)),
        *((6_000, 24_000, {"share": 1}, 4, 8), (6_000, 24_000, {"passes": 1, "share": 0.3}, 1, 3)),
    ],
)
def test_labelled_trips_come_about_as_often_as_sampled_ones_and_alone_in_up_to_half_of_the_epochs(
    labelled: int, sampled: int, told: dict[str, Any], passes: int, epochs: int
) -> None:
    assert trips.mixing_of(labelled, sampled, 8, **told) == trips.Mixing(passes, epochs)


@given(
    labelled=st.integers(1, 100_000),
    sampled=st.integers(1, 100_000),
    epochs=st.integers(1, 50),
    passes=st.integers(0, 9),
)
def test_no_labelled_trip_comes_too_often_because_sampled_ones_stay_away(
    labelled: int, sampled: int, epochs: int, passes: int
) -> None:
    """And they stay away for half of the epochs where that is so."""
    found = trips.mixing_of(labelled, sampled, epochs, passes)

    def times(mixed: int) -> Fraction:
        return found.passes * epochs + Fraction(sampled, labelled) * (epochs - mixed)

    assert epochs - epochs // 2 <= found.epochs <= epochs
    assert found.epochs == epochs or times(found.epochs) <= trips.MOST_TIMES
    assert found.epochs == epochs - epochs // 2 or times(found.epochs - 1) > trips.MOST_TIMES


@given(share=st.integers(1, 100), epochs=st.integers(1, 200))
def test_a_share_of_the_epochs_is_rounded_up(share: int, epochs: int) -> None:
    """Exactly, whatever is lost in floating point."""
    assert trips.mixing_of(10, 10, epochs, share=share / 100).epochs == math.ceil(Fraction(share * epochs, 100))


@pytest.mark.parametrize("train_trips", [7, 20, 50])
def test_after_the_mixed_epochs_labelled_trips_come_alone_in_turn(
    store: Store, tmp_path: Path, train_trips: int
) -> None:
    """All epochs have as many trips and steps; in those of labelled trips none comes two times more than another."""
    sampled = write_random_sample(tmp_path / "sampled", store)
    batch = {"sampled": sampled, "sampled_trips": 12, "train_trips": train_trips, "sampled_share": 0.4}
    settings = settings_of(store, tmp_path / "run", batch=batch, optim={"epochs": 5, "batch_size": 16})
    found = trips.open_trips(store, settings)
    schedule = trips.schedule_of(found, settings)
    planned = by_epoch(schedule)
    seen = [np.concatenate([i for p in plans for i in p.micro_batches]) for plans in planned]
    assert len(seen) == 5 and len({len(trips) for trips in seen}) == 1
    passes = round(12 / train_trips) or 1
    for epoch in range(2):
        assert np.array_equal(np.sort(seen[epoch]), np.sort([*np.tile(found.labelled, passes), *found.sampled]))
    numbers, times = np.unique(np.concatenate(seen[2:]), return_counts=True)
    assert set(numbers) <= set(found.labelled) and np.ptp(times) <= 1
    assert len(numbers) == min(train_trips, 3 * len(seen[0]))
    for first in range(schedule.total_steps):
        step = next(schedule.from_step(first))
        same = planned[step.epoch][first - step.epoch * schedule.steps_per_epoch]
        assert all(map(np.array_equal, step.micro_batches, same.micro_batches))
    lengths = found.training.lengths_of(np.concatenate(seen)) - 1
    assert schedule.total_positions == lengths.sum()


def by_epoch(schedule: Schedule) -> list[list[PlannedStep]]:
    plans = list(schedule.from_step(0))
    found = [[plan for plan in plans if plan.epoch == epoch] for epoch in range(plans[-1].epoch + 1)]
    assert {len(of_one) for of_one in found} == {schedule.steps_per_epoch}
    return found


def test_without_sampled_trips_all_are_labelled(store: Store, tmp_path: Path) -> None:
    found = trips.open_trips(store, settings_of(store, tmp_path / "run"))
    assert found.first_sampled is None and len(found.sampled) == 0 and len(found.numbers) == 60
    assert str(found) == "60 training trips, 20 validation trips"


def test_sampled_trips_that_show_little_are_left_out_as_if_there_were_none(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But where it is said how long they come."""
    sampled = write_random_sample(tmp_path / "sampled", store)
    unseen = unseen_share(store.trips("train"), load_sampled(sampled, store).take(np.arange(12)))
    batch: dict[str, Any] = {"sampled": sampled, "sampled_trips": 12}
    given = settings_of(store, tmp_path / "run", batch=batch)
    caplog.set_level("INFO")
    monkeypatch.setattr(trips, "LEAST_UNSEEN", unseen)
    assert len(trips.open_trips(store, given).sampled) == 12
    monkeypatch.setattr(trips, "LEAST_UNSEEN", unseen + 1e-9)
    found, plain = trips.open_trips(store, given), trips.open_trips(store, settings_of(store, tmp_path / "run"))
    assert found.first_sampled is None and str(found) == str(plain) and found.mixing == plain.mixing
    for one, other in zip(*(trips.schedule_of(each, given).from_step(0) for each in (found, plain)), strict=True):
        assert all(map(np.array_equal, one.micro_batches, other.micro_batches))
    told = f"{100 * unseen:.1f} % of the turns of 12 sampled trips are on none of 60 training trips"
    assert caplog.messages == [told, f"{told}: they are left out (batch.sampled_share=0.5 mixes them in)"]
    shared = settings_of(store, tmp_path / "run", batch=batch | {"sampled_share": 0.5})
    assert len(trips.open_trips(store, shared).sampled) == 12


def test_more_sampled_trips_than_there_are_are_refused(store: Store, tmp_path: Path) -> None:
    sampled = write_random_sample(tmp_path / "sampled", store)
    settings = settings_of(store, tmp_path / "run", batch={"sampled": sampled, "sampled_trips": 31})
    with pytest.raises(ConfigError, match=r"batch\.sampled_trips is 31, but .*sampled has 30 sampled trips"):
        trips.open_trips(store, settings)
