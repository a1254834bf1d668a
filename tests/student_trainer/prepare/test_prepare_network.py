"""Geometry and topology against definitions and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import ragged
from student_trainer.prepare import network
from student_trainer.prepare.network import Successors
from student_trainer.prepare.raw import Roads

points = st.tuples(st.integers(0, 4), st.integers(0, 4))
lines = st.lists(st.lists(points, min_size=2, max_size=5), min_size=1, max_size=12)
pairs = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=30)


def make_roads(shapes: list[list[tuple[int, int]]]) -> Roads:
    names = {point: i for i, point in enumerate(sorted({p for line in shapes for p in line}))}
    return Roads(
        vertices=np.array([point for line in shapes for point in line], np.float64),
        vertex_offsets=ragged.offsets(np.array([len(line) for line in shapes])),
        start_point=np.array([names[line[0]] for line in shapes]),
        end_point=np.array([names[line[-1]] for line in shapes]),
        length=np.ones(len(shapes)),
        highway=["a"] * len(shapes),
    )


def brute_centroid(line: list[tuple[int, int]]) -> np.ndarray:
    xy = np.array(line, float)
    total, weighted = 0.0, np.zeros(2)
    for a, b in itertools.pairwise(xy):
        length = float(np.sqrt(((b - a) ** 2).sum()))
        total += length
        weighted += length * (a + b) / 2
    return weighted / total if total else xy[0]


@given(lines)
def test_points_of_roads_by_definition(shapes: list[list[tuple[int, int]]]) -> None:
    roads = make_roads(shapes)
    np.testing.assert_allclose(network.line_centroids(roads), [brute_centroid(line) for line in shapes], atol=1e-12)
    np.testing.assert_allclose(network.vertex_means(roads), [np.mean(line, axis=0) for line in shapes], atol=1e-12)
    np.testing.assert_array_equal(network.end_vertices(roads), [line[-1] for line in shapes])


@given(lines)
def test_road_graph_by_brute_force(shapes: list[list[tuple[int, int]]]) -> None:
    expected = [
        (i, j) for i, a in enumerate(shapes) for j, b in enumerate(shapes) if i != j and {a[0], a[-1]} & {b[0], b[-1]}
    ]
    np.testing.assert_array_equal(network.road_graph(make_roads(shapes)).T, np.array(expected).reshape(-1, 2))


@given(pairs)
def test_successors_keep_the_order_of_the_file(rows: list[tuple[int, int]]) -> None:
    origin, destination = np.array(rows, np.int64).reshape(-1, 2).T
    successors = Successors.from_pairs(origin, destination, 8)
    for road in range(8):
        expected = list(dict.fromkeys(d for o, d in rows if o == road))
        found = successors.roads[successors.offsets[road] : successors.offsets[road + 1]]
        assert found.tolist() == expected


@given(pairs)
def test_slots_find_exactly_the_pairs(rows: list[tuple[int, int]]) -> None:
    origin, destination = np.array(rows, np.int64).reshape(-1, 2).T
    successors = Successors.from_pairs(origin, destination, 8)
    a, b = np.divmod(np.arange(64), 8)
    transitions = successors.transitions(a, b)
    for x, y, transition in zip(a, b, transitions, strict=True):
        assert (transition >= 0) == ((x, y) in rows)
        if transition >= 0:
            assert (successors.origin[transition], successors.roads[transition]) == (x, y)


def test_intersection_attributes_of_turns() -> None:
    # north, then: straight on, right turn, back; coordinates are (latitude, longitude) at the equator
    roads = make_roads([[(0, 0), (1, 0)], [(1, 0), (2, 0)], [(1, 0), (1, 1)], [(1, 0), (0, 0)]])
    successors = Successors.from_pairs(np.array([0, 0]), np.array([1, 2]), 4)
    edges = np.array([[0, 0, 0, 1], [1, 2, 3, 0]])
    found = network.intersection_attributes(roads, successors, edges)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, 0], [0, 0.5, 1, 0], atol=1e-3)
    np.testing.assert_array_equal(found[:, 1], [1, 1, 0, 0])


def test_line_without_length_is_its_first_vertex() -> None:
    assert network.line_centroids(make_roads([[(3, 4), (3, 4)]]))[0] == pytest.approx([3, 4])
