"""The next road of trips under way: as `predict` says it of the whole trip, whatever is asked beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.random_city import random_network, random_trips, write_random_store
from support.students import SCALE, random_model
from support.trained_runs import write_run

from shared import cli
from shared.errors import DataError, FileFormatError
from shared.store import Store, Trips
from student_trainer.__main__ import JOBS
from student_trainer.data.batch import build_batch
from student_trainer.data.under_way import UnderWay, build_partial
from student_trainer.predict.next_road import NextRoad, next_road_of
from student_trainer.predict.predictor import Predictor

TOLERANCE = 1e-5
"""Of logits that differ by some units, and of standardised times: what docs/api.md states."""
NETWORK, _ = random_network(40, seed=3)
TRIPS = random_trips(NETWORK, 60, seed=3, longest=30)
Question = tuple[list[int], list[int], int]


def predictor(**settings: Any) -> Predictor:
    store: Any = None
    return Predictor(random_model(NETWORK, num_layers=3), store, NETWORK, SCALE, **settings)


STUDENTS = {(top_k, most): predictor(candidate_top_k=top_k, max_steps=most) for top_k in (0, 2) for most in (0, 5)}


def question(trips: Trips, trip: int, step: int | np.integer) -> Question:
    """What is known of a trip when it has entered the road of a step."""
    first, end = int(trips.offsets[trip]), int(trips.offsets[trip + 1])
    known = slice(first, first + int(step) + 1)
    return trips.roads[known].tolist(), trips.times[known].tolist(), int(trips.roads[end - 1])


def ask(student: Predictor, questions: list[Question]) -> list[NextRoad]:
    roads, times, destinations = zip(*questions, strict=True)
    return student.next_road(roads, times, destinations)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return weights / weights.sum()


@settings(max_examples=25)
@given(st.sampled_from([0, 2]), st.integers(0, 10_000))
def test_a_trip_under_way_is_answered_as_the_whole_trip_is(top_k: int, seed: int) -> None:
    """Every road and every count equal; logits, times and probabilities to 1e-5."""
    student, rng = STUDENTS[top_k, 0], np.random.default_rng(seed)
    arrays = student.positions(TRIPS)
    chosen = rng.permutation(len(arrays["trip"]))[: rng.integers(1, 40)]
    found = ask(student, [question(TRIPS, arrays["trip"][at], arrays["step"][at]) for at in chosen])
    for at, answer in zip(chosen, found, strict=True):
        place = slice(arrays["candidate_offsets"][at], arrays["candidate_offsets"][at + 1])
        np.testing.assert_array_equal(answer.roads, arrays["road"][place])
        np.testing.assert_allclose(answer.logits, arrays["logit"][place], rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(answer.seconds, arrays["seconds"][place], rtol=TOLERANCE, atol=TOLERANCE)
        expected = probabilities_of(arrays["logit"][place])
        np.testing.assert_allclose(answer.probabilities, expected, rtol=0, atol=TOLERANCE)
    assert np.ptp(arrays["logit"]) > 1  # else anything would agree


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.integers(2, 50))
def test_what_is_asked_beside_it_changes_only_rounding(seed: int, count: int) -> None:
    student, rng = STUDENTS[0, 0], np.random.default_rng(seed)
    trips = rng.integers(len(TRIPS), size=count)
    questions = [question(TRIPS, trip, int(rng.integers(TRIPS.lengths[trip]))) for trip in trips]
    for one, answer in zip(questions, ask(student, questions), strict=True):
        alone = student.next_road(*one)
        np.testing.assert_array_equal(answer.roads, alone.roads)
        np.testing.assert_allclose(answer.logits, alone.logits, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(answer.seconds, alone.seconds, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_same_question_has_the_same_bits() -> None:
    student, questions = STUDENTS[0, 0], [question(TRIPS, trip, 1) for trip in range(20)]
    for first, second in zip(ask(student, questions), ask(student, questions), strict=True):
        assert (first.logits == second.logits).all() and (first.seconds == second.seconds).all()


@pytest.mark.parametrize("key", STUDENTS)
def test_features_have_the_bits_of_a_batch_of_whole_trips(key: tuple[int, int]) -> None:
    """With the true last road only as the destination: a trip whose last step is the one asked about."""
    top_k, most = key
    index = np.arange(30)
    batch = build_batch(NETWORK, TRIPS, index, top_k, most)
    roads, times, destinations = zip(
        *(question(TRIPS, i, int(TRIPS.lengths[i]) - 2) for i in index.tolist()), strict=True
    )
    partial = build_partial(NETWORK, UnderWay.of(NETWORK, roads, times, destinations), top_k, most)
    for name in ("road", "temporal", "distance", "interval", "length", "destination"):
        assert torch.equal(getattr(partial, name), getattr(batch, name)), name
    last = batch.length.numpy().cumsum() - 1
    np.testing.assert_array_equal(partial.candidate_length, batch.candidate_length.numpy()[last])
    columns = np.arange(partial.candidate_road.shape[1]) < partial.candidate_length[:, None]
    of_last = np.isin(batch.layout.position.numpy(), last)
    for name in ("candidate_road", "candidate_distance", "candidate_angle"):
        np.testing.assert_array_equal(getattr(partial, name).numpy()[columns], getattr(batch, name).numpy()[of_last])


def test_only_the_last_steps_are_read_if_that_is_set() -> None:
    whole, cut = STUDENTS[0, 0], STUDENTS[0, 5]
    trip = int(np.argmax(TRIPS.lengths))
    roads, times, destination = question(TRIPS, trip, int(TRIPS.lengths[trip]) - 2)
    assert (cut.next_road(roads, times, destination).logits != whole.next_road(roads, times, destination).logits).any()
    arrays = cut.positions(TRIPS)
    last = np.flatnonzero(arrays["trip"] == trip)[-1]
    place = slice(*arrays["candidate_offsets"][last : last + 2])
    np.testing.assert_allclose(
        cut.next_road(roads, times, destination).logits, arrays["logit"][place], rtol=0, atol=TOLERANCE
    )


def test_arrays_are_taken_as_lists_are_and_nothing_gives_nothing() -> None:
    student = STUDENTS[0, 0]
    roads, times, destination = question(TRIPS, 0, 1)
    expected = student.next_road(roads, times, destination)
    assert (student.next_road(np.array(roads), np.array(times), np.int64(destination)).logits == expected.logits).all()
    assert student.next_road([], [], []) == []
    assert expected.best == expected.roads[np.argmax(expected.probabilities)]


def test_a_dead_end_has_no_next_road() -> None:
    answer = next_road_of(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    assert (len(answer.roads), len(answer.probabilities), answer.best) == (0, 0, None)


def test_roads_without_successors_are_answered_beside_others() -> None:
    """Also alone, where no candidate is left to score."""
    degree = np.diff(NETWORK.successor_offsets)
    dead = 7
    kept = np.repeat(np.arange(len(degree)), degree) != dead
    changed = {name: getattr(NETWORK, name) for name in NETWORK.__dataclass_fields__}
    changed["successors"] = NETWORK.successors[kept]
    degree[dead] = 0
    changed["successor_offsets"] = np.append(0, np.cumsum(degree))
    network = type(NETWORK)(**changed)
    store: Any = None
    student = Predictor(random_model(network), store, network, SCALE)
    alone = student.next_road([dead], [0], 3)
    beside = student.next_road([[dead], [8]], [[0], [0]], [3, 3])
    assert alone.best is None and beside[0].best is None and beside[1].best is not None


def test_times_along_a_way_are_those_that_the_student_says_step_by_step() -> None:
    student = STUDENTS[0, 0]
    way = [0]
    for _ in range(6):
        way.append(int(NETWORK.successors[NETWORK.successor_offsets[way[-1]]]))
    times = student.entry_times(way, 1_704_715_200)
    assert times[0] == 1_704_715_200
    for step in range(1, len(way)):
        answer = student.next_road(way[:step], times[:step], way[step])
        seconds = answer.seconds[answer.roads == way[step]][0]
        assert times[step] - times[step - 1] == round(float(seconds))


def test_times_of_what_is_no_way_are_refused() -> None:
    stranger = next(road for road in range(40) if road not in NETWORK.successors[: NETWORK.successor_offsets[1]])
    with pytest.raises(
        DataError, match=f"road {stranger} at place 1 is no successor of road 0 .those are .* the entry times"
    ):
        STUDENTS[0, 0].entry_times([0, stranger], 0)


WRONG: dict[str, tuple[Any, Any, Any]] = {
    "trip 0 has no road": ([], [], 1),
    "trip 0 has 2 roads and 1 times": ([0, 1], [0], 1),
    "trip 0: road 40 is not in the network; roads are 0 to 39": ([0, 40], [0, 1], 1),
    "trip 0: road -1 is not in the network": ([-1], [0], 1),
    "trip 0: the destination 99 is not in the network": ([0], [0], 99),
    "trip 0: time goes backwards after place 1": ([0, 1, 2], [0, 5, 4], 1),
    "trip 0: roads: expected a list of whole numbers": ([0.5], [0], 1),
    "trip 1: times: expected a list of whole numbers": ([[0], [1]], [[0], ["noon"]], [1, 1]),
    "2 lists of roads, 2 of times, 1 destinations": ([[0], [1]], [[0], [1]], [1]),
}


@pytest.mark.parametrize(("message", "given"), WRONG.items(), ids=WRONG)
def test_questions_that_cannot_be_are_refused(message: str, given: tuple[Any, Any, Any]) -> None:
    with pytest.raises(DataError) as raised:
        STUDENTS[0, 0].next_road(*given)
    assert message in str(raised.value)


def test_damaged_weights_are_no_answer() -> None:
    with pytest.raises(DataError, match="logits that are not finite"):
        next_road_of(np.arange(2), np.array([0, np.nan], np.float32), np.zeros(2, np.float32))


@pytest.fixture(scope="module")
def city(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store and a run on it."""
    folder = tmp_path_factory.mktemp("city")
    write_run(folder / "run", write_random_store(folder / "store", trips=30), seed=1)
    return folder


def call(*arguments: object) -> int:
    return cli.main("student-trainer", "", JOBS, [str(argument) for argument in arguments])


def test_a_runs_directory_stands_for_its_best_weights(city: Path) -> None:
    (city / "empty").mkdir()
    asked = question(Store.open(city / "store").trips("val"), 0, 1)
    one = Predictor.load(city / "run", city / "store").next_road(*asked)
    other = Predictor.load(city / "run" / "checkpoints" / "best.pt", Store.open(str(city / "store"))).next_road(*asked)
    assert (one.logits == other.logits).all()
    with pytest.raises(FileFormatError, match=r"is no run with weights: it has no checkpoints/best\.pt"):
        Predictor.load(city / "empty", city / "store")


def test_the_command_prints_what_the_predictor_says(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = city / "run" / "checkpoints" / "best.pt"
    roads, times, destination = question(Store.open(city / "store").trips("val"), 0, 2)
    student = Predictor.load(weights, city / "store")
    expected = student.next_road(roads, times, destination)
    trip = ",".join(map(str, roads))
    common = ("predict", "--data", city / "store", "--weights", weights, "--destination", destination, "device=cpu")
    assert call(*common, "--trip", trip, f"times={','.join(map(str, times))}") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer == {
        "roads": expected.roads.tolist(),
        "probabilities": expected.probabilities.tolist(),
        "seconds": expected.seconds.tolist(),
    }
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-12)


def test_the_command_fills_in_times_that_are_not_given(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = city / "run" / "checkpoints" / "best.pt"
    student = Predictor.load(weights, city / "store")
    way = [0, int(student.network.successors[0])]
    common = ("predict", "--data", city / "store", "--weights", weights, "--destination", 5, "device=cpu")
    assert call(*common, "--trip", "{},{}".format(*way), "times=2024-01-08T12:00:00Z") == 0
    answer = json.loads(capsys.readouterr().out)
    times = student.entry_times(way, 1_704_715_200)
    assert answer["probabilities"] == student.next_road(way, times, 5).probabilities.tolist()
    assert call(*common, "--trip", "0") == 0  # now
    successors = student.network.successors[: student.network.successor_offsets[1]]
    assert json.loads(capsys.readouterr().out)["roads"] == successors.tolist()


REFUSED = {
    "": "give --out FILE.npz for a split, or --trip ROADS --destination ROAD",
    "--trip 1": "give --destination ROAD",
    "--trip 1 --destination 2 --out a.npz": "the answer for a trip goes to stdout",
    "--out a.npz --destination 2": "destination and times are those of a trip",
    "--out a.txt": "out must end in .npz",
    "--trip 1,2,3 --destination 2 times=1,2": "trip has 3 roads, times 2",
    "--trip 1 --destination 2 times=noon": "'noon' is no time; write 2024-01-08T12:00:00Z, or seconds since 1970",
    "--trip 1 --destination 2 times=2024-01-08T12:00:00+01:00": "has an offset; write it on the data's clock",
    "--trip 1,x --destination 2": "trip",
    "--trip 99 --destination 2 times=1": "trip 0: road 99 is not in the network; roads are 0 to 29",
}


@pytest.mark.parametrize(("flags", "message"), REFUSED.items(), ids=REFUSED)
def test_the_command_refuses(flags: str, message: str, city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = city / "run" / "checkpoints" / "best.pt"
    assert call("predict", "--data", city / "store", "--weights", weights, *flags.split()) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == ""


def test_a_run_stands_for_its_best_weights(city: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--data", city / "store", "--trip", 1, "--destination", 2, "times=2024-01-08T12:00:00Z")
    said = []
    for weights in (city / "run", city / "run" / "checkpoints" / "best.pt"):
        assert call("predict", *given, "--weights", weights) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
