"""How far it still is: the length of the shortest way from each candidate of a trip's positions to the trip's end.

Straight-line distance and direction do not see one-way streets, water and motorways; the way on the road network does.
It depends on roads and destination alone, so that it is computed once for all trips of a run.

Shapes: N roads; n trips, P positions of all of them, K candidates (all successors of a position's road).
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.sparse import csgraph

from shared import progress as bars
from shared import ragged
from shared.arrays import Float32, Float64, Int64
from shared.store import Trips
from student_trainer.data import graph
from student_trainer.data.network import RoadNetwork

FARTHEST_M = 5_000.0
"""A detour is at most so long: also what a road costs that leads nowhere."""
SOURCES = 64
"""Destinations whose distances are held at once."""


@dataclasses.dataclass(frozen=True, eq=False)
class RemainingWays:
    """Of a set of trips.

    Attributes:
        metres: float32 [K], from entering the candidate to the end of the destination; at most `FARTHEST_M` more than
            from the position's nearest candidate.
        candidates: int64 [P + 1], the first candidate of each position.
        positions: int64 [n + 1], the first position of each trip.
    """

    metres: Float32
    candidates: Int64
    positions: Int64

    def take(self, trips: Int64, kept: Int64) -> Float32:
        """Metres of the candidates of the last `kept` [B] steps of the given trips [B]: float32."""
        step = ragged.slices(self.positions[trips + 1] - kept, kept)
        first = self.candidates[step]
        return self.metres[ragged.slices(first, self.candidates[step + 1] - first)]


def remaining_ways(network: RoadNetwork, length: Float64, trips: Trips, progress: bool = False) -> RemainingWays:
    """Measures them: one search from each destination, as far as its trips need it.

    Args:
        network: the roads.
        length: float64 [N], metres of each road.
        trips: the trips, each of at least two roads.
        progress: whether to show a bar where stderr is a terminal.
    """
    steps = trips.lengths - 1
    road = trips.roads[ragged.slices(trips.offsets[:-1], steps)].astype(np.int64)
    first = network.successor_offsets[road]
    degree = network.successor_offsets[road + 1] - first
    candidate = network.successors[ragged.slices(first, degree)].astype(np.int64)
    found = RemainingWays(np.empty(len(candidate), np.float32), ragged.offsets(degree), ragged.offsets(steps))

    metres = np.maximum(length, graph.LEAST_M)
    backwards = graph.reversed_graph(network, metres[network.successors])
    searches = _searches(trips, metres)
    with bars.bar(total=len(searches), unit="destination", desc="shortest ways", shown=progress) as bar:
        for start in range(0, len(searches), SOURCES):
            block = searches[start : start + SOURCES]
            goals, limit = [search.destination for search in block], max(search.limit for search in block)
            for search, to_goal in zip(block, csgraph.dijkstra(backwards, indices=goals, limit=limit), strict=True):
                _write(found, search.trips, candidate, metres, to_goal)
            bar.update(len(block))
    return found


def ways_to(network: RoadNetwork, length: Float64, destinations: Int64) -> Float32:
    """Metres from entering each road to the end of each destination: float32 [D, N]; infinite without a way.

    Args:
        network: N roads.
        length: float64 [N], metres of each road.
        destinations: int64 [D].
    """
    metres = np.maximum(length, graph.LEAST_M)
    backwards = graph.reversed_graph(network, metres[network.successors])
    found = np.empty((len(destinations), network.num_roads), np.float32)
    for start in range(0, len(destinations), SOURCES):
        found[start : start + SOURCES] = metres + csgraph.dijkstra(
            backwards, indices=destinations[start : start + SOURCES]
        )
    return found


def no_farther(way: Float32, degree: Int64) -> Float32:
    """Metres of each position's candidates, at most `FARTHEST_M` more than of its nearest: float32 [K].

    Args:
        way: float32 [K] metres of the candidates.
        degree: int64 [P] candidates of each position, at least 1.
    """
    nearest = np.minimum.reduceat(way, ragged.offsets(degree)[:-1])
    return np.asarray(np.minimum(way, np.repeat(nearest + np.float32(FARTHEST_M), degree)))


@dataclasses.dataclass(frozen=True, eq=False)
class _Search:
    """From one destination.

    Attributes:
        destination: a road.
        trips: int64, those that end there.
        limit: metres beyond which none of them needs it: each trip is itself a way, so that the nearest candidate of a
            position is no farther than the trip is long.
    """

    destination: int
    trips: Int64
    limit: float


def _searches(trips: Trips, metres: Float64) -> list[_Search]:
    """One for each destination; those that reach about equally far follow each other."""
    travelled = np.add.reduceat(metres[trips.roads], trips.offsets[:-1])
    destinations, which, count = np.unique(trips.roads[trips.offsets[1:] - 1], return_inverse=True, return_counts=True)
    groups = np.split(np.argsort(which, kind="stable"), np.cumsum(count)[:-1])
    found = [
        _Search(int(destination), group, float(travelled[group].max()) + FARTHEST_M)
        for destination, group in zip(destinations, groups, strict=True)
    ]
    return sorted(found, key=lambda search: search.limit)


def _write(found: RemainingWays, trips: Int64, candidate: Int64, metres: Float64, to_goal: Float64) -> None:
    """Writes the metres of the candidates of trips with one destination, from whose end `to_goal` [N] is measured."""
    position = ragged.slices(found.positions[trips], found.positions[trips + 1] - found.positions[trips])
    degree = found.candidates[position + 1] - found.candidates[position]
    at = ragged.slices(found.candidates[position], degree)
    way = metres[candidate[at]] + to_goal[candidate[at]]
    nearest = np.minimum.reduceat(way, ragged.offsets(degree)[:-1])
    found.metres[at] = np.minimum(way, np.repeat(nearest + FARTHEST_M, degree))
