"""Walks towards destinations: q' = softmax(a log q + b . features), the destination-aware target, as a policy.

Its coefficients are fitted on validation trips, as training does. A walker's origin is the teacher's; its destination
is the last road of one of the labelled trips that begin nearest to it, so that trips are about as long as real ones. It
ends there; q(EOT) is not asked.

Shapes: N roads, n labelled trips, D their destinations, W walkers, K candidates (all successors) of their roads.
"""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
from scipy.spatial import cKDTree

from shared import ragged
from shared.arrays import Float16, Float32, Float64, Int32, Int64
from shared.store import Trips
from shared.subset import evenly
from student_trainer.data.batch import build_batch, candidates_of
from student_trainer.data.network import RoadNetwork
from student_trainer.data.shortest_ways import no_farther, remaining_ways, ways_to
from student_trainer.distill.conditional_logit import Choices
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.destination import DestinationTarget, choices_of, features_among, features_of, teachers
from student_trainer.distill.query import build_query
from student_trainer.distill.teacher import Teacher
from student_trainer.sample import philox
from student_trainer.sample.philox import Purpose, uniform
from student_trainer.sample.policy import End, first_roads

log = logging.getLogger(__name__)

MOST_TRIPS = 2000
"""Labelled trips whose destinations are drawn: a distance from every road to each is kept; and trips of the fit."""
NEAREST = 10
"""Labelled trips that a walker's destination is drawn from."""
BATCH = 64
"""Trips of a request of the fit."""


@dataclasses.dataclass(frozen=True, eq=False)
class Ways:
    """How far it is from every road to each destination.

    Attributes:
        metres: float32 [D, N] from entering the road; infinite without a way.
        row_of: int64 [N], row of each road that is a destination; -1 for the others.
    """

    metres: Float32
    row_of: Int64

    @classmethod
    def measured(cls, network: RoadNetwork, length: Float64, destinations: Int64) -> Ways:
        """Searches from each destination, int64 [D] ascending; of roads of some length, float64 [N] metres."""
        row_of = np.full(network.num_roads, -1)
        row_of[destinations] = np.arange(len(destinations))
        return cls(ways_to(network, length, destinations), row_of)

    def of(self, road: Int64, goal: Int64) -> Float32:
        """From roads to destinations, int64 [n] both: float32 [n]."""
        return np.asarray(self.metres[self.row_of[goal], road])


@dataclasses.dataclass(frozen=True, eq=False)
class DestinationPolicy:
    """See the module.

    Attributes:
        network: N roads.
        ways: to all destinations.
        coefficients: float64 [F], by `distill.destination.FEATURES`.
        first: int64 [n], first road of each labelled trip; last: int64 [n], its last one.
        nearby: the centroids of `first`.
        origin: float64 [N], running sums of the roads' weights as first ones.
        seed: of the random numbers.
        most: largest number of successors.
    """

    network: RoadNetwork
    ways: Ways
    coefficients: Float64
    first: Int64
    last: Int64
    nearby: cKDTree
    origin: Float64
    seed: int
    most: int

    def begin(self, walker: Int64) -> tuple[Int64, Int64]:
        """See `Policy`."""
        road = first_roads(self.origin, self.seed, walker)
        count = min(NEAREST, len(self.first))
        near = np.asarray(self.nearby.query(plane(self.network)[road], k=[*range(1, count + 1)])[1])
        number = uniform(self.seed, Purpose.DESTINATION, walker, np.zeros_like(walker))
        trip = near[np.arange(len(road)), (number * count).astype(np.int64)]
        return road, self.last[trip]

    def arrive(self, road: Int64, goal: Int64) -> Int64:
        """See `Policy`: a walker from whose road no way leads to its destination is lost."""
        end = np.where(np.isfinite(self._nearest(road, goal)), End.GOES_ON, End.LOST)
        end[road == goal] = End.ENDED
        return end

    def candidates(self, road: Int64) -> tuple[Int32, Int32]:
        """See `Policy`: the cell of every successor, as training asks."""
        way, degree = self._successors(road)
        return self.network.road_token[self.network.successors[way]].astype(np.int32), degree.astype(np.int32)

    def draw(self, road: Int64, goal: Int64, roads: Int64, log_probs: Float16, number: Float64) -> Int64:
        """See `Policy`."""
        way, degree = self._successors(road)
        scores = self.scores(road, goal, log_probs)
        padded = np.full((len(road), self.most), -np.inf)
        padded[ragged.rows(degree), ragged.positions(degree)] = scores
        weights = np.exp(padded - padded.max(1, keepdims=True))
        chosen = philox.pick(np.cumsum(weights, axis=1), number)
        following: Int64 = self.network.successors[way[ragged.offsets(degree)[:-1] + chosen]].astype(np.int64)
        return following

    def scores(self, road: Int64, goal: Int64, log_probs: Float16) -> Float64:
        """log q' but for a constant at each walker: float64 [K].

        Feature by feature: a product of matrices may have other bits for other numbers of walkers.
        """
        found = candidates_of(self.network, road, np.full(len(road), -1, np.int32), goal)
        way = self.ways.of(found.road, np.repeat(goal, found.length))
        token = self.network.road_token[found.road].astype(np.int64)
        features = features_among(found.length, token, found.distance, found.angle, no_farther(way, found.length))
        scores: Float64 = self.coefficients[0] * teachers(log_probs).astype(np.float64)
        for coefficient, feature in zip(self.coefficients[1:], features.T, strict=True):
            scores += coefficient * feature
        return scores

    def _nearest(self, road: Int64, goal: Int64) -> Float32:
        """Metres from the best successor of each road to its destination, infinite without one: float32 [W]."""
        way, degree = self._successors(road)
        nearest = np.full(len(road), np.inf, np.float32)
        to_goal = self.ways.of(self.network.successors[way].astype(np.int64), np.repeat(goal, degree))
        np.minimum.at(nearest, ragged.rows(degree), to_goal)
        return nearest

    def _successors(self, road: Int64) -> tuple[Int64, Int64]:
        """Transitions from each road, back to back, and how many: int64 [K], int64 [W]."""
        start = self.network.successor_offsets[road]
        degree = self.network.successor_offsets[road + 1] - start
        return ragged.slices(start, degree), degree


def plane(network: RoadNetwork) -> Float64:
    """The roads' centroids in a plane that keeps what is near, up to a factor: float64 [N, 2]."""
    lat, lng = network.line_centroid.T
    return np.stack([lat, lng * np.cos(np.radians(lat.mean()))], axis=1)


def make_policy(
    teacher: Teacher,
    network: RoadNetwork,
    length: Float64,
    labelled: Trips,
    unseen: Trips,
    origin: Float64,
    distill: DistillConfig,
    seed: int,
) -> DestinationPolicy:
    """The policy, fitted.

    Args:
        teacher: to ask.
        network: N roads.
        length: float64 [N], metres.
        labelled: trips whose destinations are drawn; at most `MOST_TRIPS` are taken, evenly.
        unseen: trips that the teacher was not trained on, which the policy is fitted to.
        origin: float64 [N], running sums of the roads' weights as first ones.
        distill: the window that the teacher is shown.
        seed: of the walkers' random numbers.

    Raises:
        TeacherError: it does not answer.
        TrainingError: the trips leave no choice.
    """
    trips = labelled.take(evenly(len(labelled), MOST_TRIPS))
    first, last = (trips.roads[place].astype(np.int64) for place in (trips.offsets[:-1], trips.offsets[1:] - 1))
    ways = Ways.measured(network, length, np.unique(last))
    target, fit = DestinationTarget.fitted(_choices(teacher, network, length, unseen, distill))
    log.info(
        "destination-aware policy, fitted on %d positions of %d validation trips: nll %.4f where there is a choice; %s",
        fit.positions, len(unseen), fit.nll, target,
    )  # fmt: skip
    most = int(np.diff(network.successor_offsets).max())
    nearby = cKDTree(plane(network)[first])
    return DestinationPolicy(network, ways, target.coefficients, first, last, nearby, origin, seed, most)


def _choices(teacher: Teacher, network: RoadNetwork, length: Float64, trips: Trips, distill: DistillConfig) -> Choices:
    ways = remaining_ways(network, length, trips)
    numbers = np.arange(len(trips))
    batches = [build_batch(network, trips, numbers[start : start + BATCH]) for start in range(0, len(trips), BATCH)]
    replies = [teacher.submit(build_query(batch, network, distill)) for batch in batches]
    return Choices.joined(
        [
            choices_of(
                batch,
                features_of(batch, ways.take(batch.trips.numpy(), batch.length.numpy())),
                reply.result().log_probs,
            )
            for batch, reply in zip(batches, replies, strict=True)
        ]
    )
