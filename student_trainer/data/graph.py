"""The roads as a graph: what can be reached, and the shortest way. N roads, S pairs of a road and a successor."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from shared import ragged
from shared.arrays import Bool, Float64, Int32, Int64
from student_trainer.data.network import RoadNetwork

SOURCES = 64
"""Destinations whose trees of shortest ways are held at once."""


def reversed_graph(network: RoadNetwork, cost: Float64) -> sparse.csr_matrix:
    """An edge from each road to each one before it, with the cost [S] of going the other way."""
    size = network.num_roads
    forward = sparse.csr_matrix((cost, network.successors, network.successor_offsets), shape=(size, size))
    return forward.T.tocsr()


def reachable(network: RoadNetwork, origin: Int64, destination: Int64) -> Bool:
    """Whether there is a way from each origin [Q] to its destination [Q]; always to itself."""
    graph = reversed_graph(network, np.ones(len(network.successors)))
    components, component = csgraph.connected_components(graph, connection="strong")
    found = component[origin] == component[destination]
    if components > 1:
        goals, goal = np.unique(destination[~found], return_inverse=True)
        before = [csgraph.breadth_first_order(graph, road, return_predecessors=False) for road in goals]
        open_pairs = np.flatnonzero(~found)
        for number, roads in enumerate(before):
            of_goal = open_pairs[goal == number]
            found[of_goal] = np.isin(origin[of_goal], roads)
    return np.asarray(found)


def shortest_paths(network: RoadNetwork, length: Float64, origin: Int64, destination: Int64) -> list[Int64]:
    """The roads of the shortest way from each origin to its destination, both included; empty where there is none.

    The length of a way is that of all its roads but the origin.

    Args:
        network: the roads.
        length: float64 [N] metres.
        origin, destination: int64 [Q].
    """
    graph = reversed_graph(network, np.maximum(length, LEAST_M)[network.successors])
    ways: list[Int64] = [np.empty(0, np.int64)] * len(origin)
    goals, goal = np.unique(destination, return_inverse=True)
    order = np.argsort(goal, kind="stable")
    for first in range(0, len(goals), SOURCES):
        _, following = csgraph.dijkstra(graph, indices=goals[first : first + SOURCES], return_predecessors=True)
        for pair in order[np.searchsorted(goal[order], first) : np.searchsorted(goal[order], first + SOURCES)]:
            ways[pair] = _way(following[goal[pair] - first], int(origin[pair]), int(destination[pair]))
    return ways


LEAST_M = 1e-6
"""Metres of a road of no length; an edge must cost something."""


def costs_to(destination: int, degree: Int64, successor: Int64, cost: Float64) -> Float64:
    """Least cost from every road to one, float64 [N]; infinite without a way.

    Args:
        destination: the road.
        degree: int64 [N] successors per road; successor: int64 [S] these; cost: float64 [S] of going there.
    """
    size = len(degree)
    graph = sparse.csr_matrix((np.maximum(cost, LEAST_COST), successor, ragged.offsets(degree)), shape=(size, size))
    return np.asarray(csgraph.dijkstra(graph.T.tocsr(), indices=[destination])[0])


LEAST_COST = 1e-12
"""As `LEAST_M`."""


def _way(following: Int32, road: int, destination: int) -> Int64:
    roads = [road]
    while road != destination:
        road = int(following[road])
        if road < 0:
            return np.empty(0, np.int64)
        roads.append(road)
    return np.array(roads, np.int64)
