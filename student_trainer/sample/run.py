"""`student-trainer sample`: trips drawn from a teacher, on the road network of a store.

A trip begins on a road of a cell drawn from q(cell | SOT), goes on with q(cell | the last `window` cells) over the
cells of the road's successors and the end of the trip, and ends with that, or where the network does. The trips are a
split of their own (`student_trainer.data.sampled`), which training mixes with labelled trips.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from shared import claims, files, progress, provenance, subset
from shared.arrays import Float64
from shared.errors import ConfigError, DataError
from shared.store import Store, Trips
from shared.wire import Limits
from student_trainer.data.network import RoadNetwork
from student_trainer.data.sampled import DOCUMENT, is_sampled, write_sampled
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.destination import FEATURES
from student_trainer.distill.query import check_window
from student_trainer.distill.teacher import Teacher
from student_trainer.sample.choices import make_choices
from student_trainer.sample.config import SampleConfig
from student_trainer.sample.ends import AS_THE_TEACHER_SAYS, fit_ends
from student_trainer.sample.observed import Observed, observe
from student_trainer.sample.origin import origin_weights
from student_trainer.sample.policy import End, HistoryPolicy, Policy
from student_trainer.sample.towards import MOST_TRIPS, make_policy
from student_trainer.sample.walk import Ground, Walks, walk

log = logging.getLogger(__name__)

FEWEST = 0.01
"""Share of walkers that must make a trip, of enough to tell; below it the teacher, or a setting, is wrong."""
ENOUGH = math.ceil(1 / FEWEST)
"""Walkers that tell; so many more are sent where none has made a trip."""
SPARE = 1.1
"""How many more walkers are sent than are likely to be needed, once some have made no trip."""


def run(settings: SampleConfig) -> int:
    """Draws and writes; prints what was done as JSON on stdout.

    Raises:
        CompatibilityError: the teacher does not fit the store or the settings.
        ConfigError: OUT holds something, or another job writes there; there are fewer labelled trips than wanted.
        DataError: no trips can be drawn.
        TeacherError: the teacher does not answer.
    """
    document = sample(settings)
    shown = {name: document[name] for name in ("store", "teacher", "counts", "rates")}
    print(json.dumps({"out": str(settings.out), **shown}))
    return 0


def sample(settings: SampleConfig) -> dict[str, Any]:
    """Draws and writes; returns the content of `sampled.json`. Raises as `run`."""
    with claims.directory(settings.out):
        claims.check(settings.out, "a directory of sampled trips", is_sampled)
        if (settings.out / DOCUMENT).exists() and not settings.replace:
            raise ConfigError(f"{settings.out} holds sampled trips; choose another --out, or replace=true")
        store = Store(settings.data)
        teacher = GrpcTeacher(settings.teacher, settings.client)
        try:
            store.check_vocabulary(teacher.info.tokeniser, f"at {settings.teacher}")
            check_window(teacher.info, settings.window, "window", settings.teacher)
            trips, about = draw(settings, store, teacher, teacher.info.limits)
        finally:
            teacher.close()
        with files.atomic_directory(settings.out) as folder:
            if settings.csv:
                write_csv(folder / "trips.csv", trips)
            document = write_sampled(folder, trips, store, about)
    rates = about["rates"]
    log.info(
        "wrote %s: %d trips, %.0f trips/s, %.0f positions/s", settings.out, len(trips), rates["trips_per_s"],
        rates["positions_per_s"],
    )  # fmt: skip
    return document


def draw(settings: SampleConfig, store: Store, teacher: Teacher, limits: Limits) -> tuple[Trips, dict[str, Any]]:
    """The trips, and what there is to say about them: the teacher, settings, counts and rates.

    Raises:
        ConfigError: there are fewer labelled trips than wanted.
        DataError: no trips can be drawn.
        TeacherError: the teacher does not answer.
    """
    start = time.perf_counter()
    scene = Scene.of(settings, store)
    network = scene.network
    window = min(settings.window or limits.max_window, settings.max_roads)
    policy, about = _policy(settings, scene, teacher, limits, window)
    ground = Ground(policy, network.road_token, settings.seed, window, settings.max_roads)
    walks, positions = _walk(settings, ground, teacher)
    kept = walks.take(np.flatnonzero(walks.is_trip)[: settings.trips])
    times = scene.observed.times(settings.seed, kept.number, kept.roads.astype(np.int64), kept.offsets)
    trips = Trips(kept.roads, times, kept.offsets, kept.number)
    seconds = time.perf_counter() - start
    return trips, {
        "teacher": {"addresses": settings.teacher, "revision": teacher.revision},
        "settings": settings.model_dump(mode="json"),
        "code_version": provenance.source_digest(__name__),
        "policy": about,
        "counts": _counts(walks, kept, scene),
        "rates": {
            "seconds": seconds,
            "trips_per_s": len(trips) / seconds,
            "positions": positions,
            "positions_per_s": positions / seconds,
        },
        "environment": provenance.environment(),
    }


@dataclasses.dataclass(frozen=True, eq=False)
class Scene:
    """Where the walkers walk, and what is known of it.

    Attributes:
        store: that they are of.
        network: of the store; length: float64 [N], metres of its roads; eot: token of the end of a trip.
        labelled: the trips that may be used; observed: what they show.
    """

    store: Store
    network: RoadNetwork
    length: Float64
    eot: int
    labelled: Trips
    observed: Observed

    @classmethod
    def of(cls, settings: SampleConfig, store: Store) -> Scene:
        """Read from a store; raises as `draw`."""
        network, length = RoadNetwork.load(store), store.network("length").astype(np.float64)
        if not len(network.successors):
            raise DataError(f"{store.path}: no road has a successor, so there are no trips")
        train = store.trips("train", settings.cache)
        chosen = subset.choose(train, settings.train_trips, settings.sample_seed, "train_trips", "training")
        known = train.take(chosen)
        return cls(store, network, length, store.tokeniser.vocabulary.eot, known, observe(known, network, length))


def _policy(
    settings: SampleConfig, scene: Scene, teacher: Teacher, limits: Limits, window: int
) -> tuple[Policy, dict[str, Any]]:
    """How walkers choose, and what was fitted for that."""
    network, observed = scene.network, scene.observed
    weights = origin_weights(
        teacher, network.road_token, observed.first, settings.smoothing, limits.max_request_candidates
    )
    origin = np.cumsum(weights)
    if settings.policy == "destination":
        distill = DistillConfig(window=window, history="window")
        unseen = scene.store.trips("val", settings.cache)
        unseen = unseen.take(subset.draw(len(unseen), MOST_TRIPS, settings.sample_seed))
        towards = make_policy(teacher, network, scene.length, scene.labelled, unseen, origin, distill, settings.seed)
        return towards, {"coefficients": dict(zip(FEATURES, towards.coefficients.tolist(), strict=True))}
    choices = make_choices(network, scene.eot, observed.taken, settings.smoothing)
    ends = AS_THE_TEACHER_SAYS
    if settings.ends == "calibrated":
        ends = fit_ends(teacher, scene.labelled, choices, network.road_token, window)
        shown = "the whole trip, as far as it knows" if settings.window == 0 else f"{window} cells of a trip"
        log.info("the teacher sees %s, and q(EOT) is calibrated to labelled trips: multiplied %s", shown, ends)
    return HistoryPolicy(choices, ends, origin, settings.seed), {"ends": ends.as_dict()}


def _walk(settings: SampleConfig, ground: Ground, teacher: Teacher) -> tuple[Walks, int]:
    """Walks enough for the trips, by number, and how many positions were asked."""
    positions, walks = 0, Walks.nobody()
    with progress.bar(total=settings.trips, unit="trip") as bar:

        def advance(asked: int, trips: int) -> None:
            nonlocal positions
            positions += asked
            bar.update(min(trips, settings.trips - bar.n))

        while (made := int(walks.is_trip.sum())) < settings.trips:
            walked, missing = len(walks.number), settings.trips - made
            if walked >= ENOUGH and made < FEWEST * walked:
                raise DataError(
                    f"of {walked} walkers {made} made a trip: {_ends(walks)}; see max_roads and the teacher"
                )
            without_trip = ENOUGH if walked else missing
            count = math.ceil(SPARE * missing * walked / made) if made else without_trip
            more = walk(ground, teacher, walked, count, settings.walkers, settings.client.lookahead, advance)
            walks = Walks.joined([walks, more])
    last = np.flatnonzero(walks.is_trip)[settings.trips - 1]
    return walks.take(np.arange(last + 1)), positions


def _ends(walks: Walks) -> dict[str, int]:
    """How walks ended: those that may be kept, and why the others may not."""
    is_trip = walks.is_trip
    kinds = {"ended": walks.end == End.ENDED, "dead_end": walks.end == End.DEAD_END}
    counts = {name: int((is_end & is_trip).sum()) for name, is_end in kinds.items()}
    dropped = {"too_long": walks.end == End.TOO_LONG, "lost": walks.end == End.LOST}
    dropped = {"too_short": ~is_trip & ~dropped["too_long"] & ~dropped["lost"], **dropped}
    return counts | {f"dropped_{name}": int(is_end.sum()) for name, is_end in dropped.items()}


def _counts(walks: Walks, kept: Walks, scene: Scene) -> dict[str, Any]:
    """Of the walkers up to the last one whose trip was kept."""
    known, num_roads = scene.labelled, scene.network.num_roads
    return {
        "trips": len(kept.number),
        "walkers": len(walks.number),
        **_ends(walks),
        "roads_per_trip": float(np.diff(kept.offsets).mean()),
        "roads_covered": len(np.unique(kept.roads)) / num_roads,
        "labelled_trips": len(known),
        "labelled_roads_per_trip": float(known.lengths.mean()),
        "labelled_roads_covered": len(np.unique(known.roads)) / num_roads,
    }


def write_csv(path: Path, trips: Trips) -> None:
    """Writes trips as `prepare` reads them: the columns traj_id, rid_list and time_list."""
    with open(path, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("traj_id", "rid_list", "time_list"))
        times = trips.times.astype("M8[s]")
        for row, (start, end) in enumerate(zip(trips.offsets[:-1], trips.offsets[1:], strict=True)):
            roads = ",".join(map(str, trips.roads[start:end]))
            writer.writerow((trips.source_rows[row], roads, ",".join(f"{moment}Z" for moment in times[start:end])))
