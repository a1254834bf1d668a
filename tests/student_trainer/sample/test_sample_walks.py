"""Sampled trips against every trip's exact probability; what they do not depend on; where they begin and end."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from support.random_city import random_network, random_trips, write_random_store
from support.walked_city import WeighingTeacher, enumerate_trips

from shared import ragged
from shared.errors import ConfigError, DataError
from shared.store import Store, Trips
from shared.wire import Limits
from student_trainer.data.network import RoadNetwork
from student_trainer.sample import ends, run
from student_trainer.sample.choices import make_choices
from student_trainer.sample.config import SampleConfig
from student_trainer.sample.ends import Ends
from student_trainer.sample.observed import observe
from student_trainer.sample.origin import origin_weights
from student_trainer.sample.policy import End, HistoryPolicy
from student_trainer.sample.walk import Ground, Group, walk

LIMITS = Limits(15, 2**22, 2**18, 2**16, 2**20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("city") / "store")


def settings(store: Store, **values: object) -> SampleConfig:
    return SampleConfig.model_validate({"data": store.path, "teacher": "host:1", "out": "unused", **values})


def drawn(store: Store, **values: object) -> Trips:
    teacher = WeighingTeacher(store.tokeniser.vocabulary.size)
    return run.draw(settings(store, **values), store, teacher, LIMITS)[0]


def tuples(trips: Trips) -> list[tuple[int, ...]]:
    return [tuple(roads.tolist()) for roads in np.split(trips.roads, trips.offsets[1:-1])]


def same(one: Trips, other: Trips) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def weights(store: Store, smoothing: float) -> tuple[dict[int, float], dict[tuple[int, int], float]]:
    """Counted in the plainest way."""
    network, trips = RoadNetwork.load(store), tuples(store.trips("train"))
    first = dict.fromkeys(range(network.num_roads), smoothing)
    taken = {
        (road, int(following)): smoothing
        for road in range(network.num_roads)
        for following in network.successors[network.successor_offsets[road] : network.successor_offsets[road + 1]]
    }
    for trip in trips:
        first[trip[0]] += 1
        for step in itertools.pairwise(trip):
            taken[step] += 1
    return first, taken


@pytest.mark.parametrize("window", [1, 2, 0])
def test_frequencies_are_the_exact_probabilities(store: Store, window: int) -> None:
    """Chi-square over all trips of up to 3 roads; rare ones, and those that are longer, are classes of their own."""
    count, most = 30_000, 3
    vocabulary = store.tokeniser.vocabulary
    network = RoadNetwork.load(store)
    exact = enumerate_trips(network, vocabulary.eot, *weights(store, 0.5), window or most, most)
    assert sum(exact.values()) == pytest.approx(1)
    kept = {trip: p for trip, p in exact.items() if len(trip) >= 2}
    values = {"trips": count, "window": window, "max_roads": most, "smoothing": 0.5, "ends": "teacher", "seed": 3}
    made, about = run.draw(settings(store, **values), store, WeighingTeacher(vocabulary.size), LIMITS)
    found = Counter(tuples(made))
    assert found.keys() <= kept.keys()

    total = sum(kept.values())
    expected = np.array([kept[trip] / total * count for trip in kept])
    observed = np.array([found[trip] for trip in kept], np.float64)
    rare = expected < 10
    observed, expected = (np.append(values[~rare], values[rare].sum()) for values in (observed, expected))
    assert (~rare).sum() > 200
    assert scipy.stats.chisquare(observed, expected).pvalue > 0.01

    walkers = about["counts"]["walkers"]  # up to the last whose trip is kept: the number of trials until `count`
    assert walkers == pytest.approx(count / total, rel=0.03)
    for name, share in [("dropped_too_long", exact[()]), ("dropped_too_short", 1 - total - exact[()])]:
        assert about["counts"][name] == pytest.approx(share * walkers, abs=4 * np.sqrt(share * walkers))


def test_cells_and_roads_are_told_apart_in_that_test(store: Store) -> None:
    """Otherwise it would show less: successors share cells, and the teacher depends on more than the last cell."""
    network = RoadNetwork.load(store)
    token = network.road_token[network.successors]
    road = ragged.rows(np.diff(network.successor_offsets))
    assert len(np.unique(road * 1000 + token)) < len(token)
    assert not same(drawn(store, window=1, trips=200), drawn(store, window=2, trips=200))


@pytest.mark.parametrize("changed", [{"walkers": 1}, {"walkers": 7}, {"client": {"lookahead": 1}}])
def test_a_trip_does_not_depend_on_who_walks_beside_it(store: Store, changed: dict[str, object]) -> None:
    assert same(drawn(store, trips=60), drawn(store, trips=60, **changed))


def test_walkers_of_a_request_change_no_trip(store: Store) -> None:
    teachers = [WeighingTeacher(store.tokeniser.vocabulary.size) for _ in range(2)]
    found = [
        run.draw(settings(store, trips=60, walkers=walkers, ends="teacher"), store, teacher, LIMITS)[0]
        for walkers, teacher in zip((9, 4096), teachers, strict=True)
    ]
    assert same(*found) and max(teachers[0].rows) == 9 < max(teachers[1].rows)


def test_a_single_trip_is_drawn_whatever_the_first_walkers_make(store: Store) -> None:
    """Some seeds' first walker ends at once: that says nothing of the teacher."""
    lengths = [len(drawn(store, trips=1, seed=seed)) for seed in range(30)]
    assert lengths == [1] * 30


def test_the_first_trips_of_a_longer_draw_are_those_of_a_shorter_one(store: Store) -> None:
    short, long = drawn(store, trips=40), drawn(store, trips=150)
    assert same(short, long.take(np.arange(40)))
    assert not same(short, drawn(store, trips=40, seed=1))
    assert np.all(np.diff(long.source_rows) > 0)


def test_only_the_labelled_trips_are_used(store: Store, tmp_path: Path) -> None:
    """Other trips of the training split may say what they like."""
    other = write_random_store(tmp_path / "store")
    train, values = other.trips("train"), {"train_trips": 12, "sample_seed": 5, "trips": 80}
    chosen = np.sort(np.random.default_rng(5).permutation(len(train))[:12])
    foreign = random_trips(random_network()[0], len(train), seed=99)
    foreign = Trips(foreign.roads, foreign.times + 10**6, foreign.offsets, foreign.source_rows)
    parts = [(train if row in chosen else foreign).take(np.array([row])) for row in range(len(train))]
    lengths = np.concatenate([part.lengths for part in parts])
    np.save(other.path / "train" / "roads.npy", np.concatenate([part.roads for part in parts]))
    np.save(other.path / "train" / "times.npy", np.concatenate([part.times for part in parts]))
    np.save(other.path / "train" / "offsets.npy", ragged.offsets(lengths))
    assert same(drawn(store, **values), drawn(other, **values))
    assert not same(drawn(store, trips=80), drawn(other, trips=80))


def test_more_labelled_trips_than_there_are_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="train_trips is 61, but the store has 60 training trips"):
        drawn(store, train_trips=61)


def test_walkers_that_never_make_a_trip_end_the_job(store: Store) -> None:
    class NeverEnds(WeighingTeacher):
        def submit(self, query):  # type: ignore[no-untyped-def]
            future = super().submit(query)
            reply = future.result()
            reply.log_probs[query.candidate_tokens == store.tokeniser.vocabulary.eot] = -1000
            return future

    teacher = NeverEnds(store.tokeniser.vocabulary.size)
    with pytest.raises(DataError, match=r"of 150 walkers 0 made a trip: .*'dropped_too_long': 150"):
        run.draw(settings(store, trips=50, max_roads=20, ends="teacher"), store, teacher, LIMITS)


def test_dead_ends_end_trips_and_walkers_that_begin_there_are_dropped() -> None:
    """0 -> 1 -> 2, where nothing follows 2."""
    network, tokeniser = random_network(4, max_degree=1)
    network = RoadNetwork(
        **{**vars(network), "successor_offsets": np.array([0, 1, 2, 2, 2]), "successors": np.array([1, 2], np.int32)}
    )
    choices = make_choices(network, tokeniser.vocabulary.eot, np.zeros(2, np.int64), 0.1)
    origin = np.cumsum([1.0, 1.0, 1.0, 0.0])
    ground = Ground(HistoryPolicy(choices, ends.AS_THE_TEACHER_SAYS, origin, 0), network.road_token, 0, 4, 10)
    walks = walk(ground, WeighingTeacher(50), 0, 200, 16, 2, lambda asked, trips: None)
    assert walks.number.tolist() == list(range(200))
    trips = np.split(walks.roads, walks.offsets[1:-1])
    kinds = {(tuple(trip.tolist()), int(end)) for trip, end in zip(trips, walks.end, strict=True)}
    ended = {((0,), End.ENDED), ((1,), End.ENDED), ((0, 1), End.ENDED)}
    assert kinds == ended | {((2,), End.DEAD_END), ((1, 2), End.DEAD_END), ((0, 1, 2), End.DEAD_END)}
    assert {trip for trip, _ in kinds if len(trip) > 1} == {
        tuple(trips[i].tolist()) for i in np.flatnonzero(walks.is_trip)
    }
    nobody = Group(ground, lambda count: np.zeros(0, np.int64), 5)
    assert len(nobody) == 0


def test_pieces_of_the_origin_are_joined_by_their_masses(store: Store) -> None:
    network, vocabulary = RoadNetwork.load(store), store.tokeniser.vocabulary
    first = np.arange(network.num_roads)
    teacher = WeighingTeacher(vocabulary.size)
    whole, pieces = (origin_weights(teacher, network.road_token, first, 0.5, most) for most in (2**20, 4))
    assert len(np.unique(network.road_token)) > 8
    np.testing.assert_allclose(pieces / pieces.sum(), whole / whole.sum(), rtol=5e-3)  # of float16, twice
    of_cell = np.bincount(network.road_token, whole)
    assert of_cell.sum() == pytest.approx(1, rel=5e-3)
    road = 7
    cell = network.road_token == network.road_token[road]
    assert whole[road] / of_cell[network.road_token[road]] == pytest.approx((road + 0.5) / (first[cell] + 0.5).sum())


def test_times_are_drawn_from_what_was_seen_on_the_road(store: Store) -> None:
    network, known = RoadNetwork.load(store), store.trips("train").take(np.arange(10))
    length = store.network("length")
    made = drawn(store, trips=300, train_trips=0)
    observed = observe(known, network, length)
    times = observed.times(1, made.source_rows, made.roads.astype(np.int64), made.offsets)
    seen: dict[int, set[int]] = {}
    speeds = []
    for trip in range(len(known)):
        part = slice(known.offsets[trip], known.offsets[trip + 1])
        for road, seconds in zip(known.roads[part].tolist(), np.diff(known.times[part]).tolist(), strict=False):
            seen.setdefault(road, set()).add(seconds)
            speeds.append(length[road] / seconds)
    unseen = 0
    for trip in range(len(made)):
        part = slice(made.offsets[trip], made.offsets[trip + 1])
        assert times[part][0] in known.times[known.offsets[:-1]]
        for road, seconds in zip(made.roads[part].tolist(), np.diff(times[part]).tolist(), strict=False):
            unseen += road not in seen
            assert seconds in seen.get(road, {round(length[road] / np.median(speeds))})
    assert unseen
    assert len(set(times[made.offsets[:-1]].tolist())) == 10


def test_labelled_trips_that_take_no_time_are_refused(store: Store) -> None:
    known = store.trips("train")
    still = Trips(known.roads, np.zeros_like(known.times), known.offsets, known.source_rows)
    with pytest.raises(DataError, match="no labelled trip takes any time"):
        observe(still, RoadNetwork.load(store), store.network("length"))


def test_the_end_is_as_frequent_as_in_labelled_trips() -> None:
    """The likelihood's maximum, against a plain search; and what that means in each range."""
    rng = np.random.default_rng(0)
    roads, log_odds = rng.integers(1, 60, 4000), rng.normal(-3, 1, 4000)
    has_ended = rng.random(4000) < 1 / (1 + np.exp(-(log_odds + 1.5 + 0.02 * roads)))
    fitted = ends.fit(log_odds, roads, has_ended)
    assert len(fitted.shift) > 10
    part = fitted.range_of(roads)
    for k in range(len(fitted.shift)):
        odds, ended = log_odds[part == k], has_ended[part == k]
        expected = 1 / (1 + np.exp(-(odds + fitted.shift[k])))
        assert expected.sum() == pytest.approx(ended.sum(), abs=1e-6)
        grid = fitted.shift[k] + np.linspace(-0.5, 0.5, 101)
        signed = np.where(ended, 1, -1) * (odds + grid[:, None])
        assert np.argmin(np.logaddexp(0, -signed).sum(1)) == 50
    np.testing.assert_allclose(fitted.factor(roads), np.exp(fitted.shift[part]))


def test_ranges_without_any_end_or_any_choice_stay_bounded() -> None:
    assert ends.shift_of(np.zeros(3), 0) == pytest.approx(-ends.LARGEST)
    assert ends.shift_of(np.zeros(3), 3) == pytest.approx(ends.LARGEST)
    none = ends.fit(np.zeros(3), np.arange(3), np.zeros(3, bool))
    assert none.shift.tolist() == [pytest.approx(-ends.LARGEST)]


def test_calibrated_ends_give_trips_their_lengths(store: Store) -> None:
    """A teacher of one cell's window knows nothing of a length; labelled trips have 2 to 12 roads, 7 on average."""
    raw, fitted = (drawn(store, trips=2000, window=1, ends=kind).lengths for kind in ("teacher", "calibrated"))
    known = store.trips("train").lengths
    assert abs(raw.mean() - known.mean()) > 2
    assert fitted.mean() == pytest.approx(known.mean(), abs=0.5)
    assert known.max() <= fitted.max() <= known.max() + 3
    assert fitted.min() == known.min() == 2


def test_ends_say_in_words_what_they_are() -> None:
    assert (
        str(Ends(np.array([2, 9]), np.array([-20.0, 0.0, np.log(3)])))
        == "by 1 to 3, depending on length (0 before 3 roads)"
    )
