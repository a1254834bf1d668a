"""Whether the roads can be what the files say: points, lengths and links against each other.

Nothing is refused here, for only the user knows; what is odd is said in a sentence, with counts and a remedy.
"""

from __future__ import annotations

import numpy as np

from shared.arrays import Float64, Int64
from student_trainer.data.geometry import haversine_m
from student_trainer.prepare.raw import Roads
from student_trainer.prepare.words import counted, form

UNITS = {"kilometres": 1e-3, "miles": 1 / 1609.344, "feet": 3.28084, "centimetres": 100.0}
"""How many of each a metre has."""
ODD = 1.5
"""A median ratio of length and line between this and its inverse may be that of metres."""
NEAR = 1.1
"""A ratio within this factor of a unit's is that unit's."""
SPREAD = 0.03
"""Median deviation of log(length / line) below which the axes are right."""
FITS_BETTER = 3.0
"""By how much swapped axes must fit better."""
FAR = 50.0
"""A road that lies so many times as far from the middle as the median road does not belong to the network."""
NAMED = 3


def findings(roads: Roads, origin: Int64, destination: Int64) -> list[str]:
    """Sentences about what is odd.

    Args:
        roads: of the network.
        origin, destination: int64, the rows of `roadmap.rel`.
    """
    return [
        *_merged_points(roads),
        *_open_links(roads, origin, destination),
        *_lengths(roads),
        *_far_roads(roads),
    ]


def remedy_for_far_roads(vertices: Float64, vertex_offsets: Int64) -> str:
    """What makes a grid large, and what to do; nothing if no road lies far from the others.

    Args:
        vertices: float64 [V, 2] latitude and longitude, roads back to back.
        vertex_offsets: int64 [N + 1].
    """
    far = far_roads(vertices, vertex_offsets)
    if not len(far):
        return ""
    named = _describe_far(vertices, vertex_offsets, far)
    return f". Or mend or remove what lies far from all other roads ({named}), or set grid.bounds to the city's"


def far_roads(vertices: Float64, vertex_offsets: Int64) -> Int64:
    """Roads far from all others, the farthest first: int64, perhaps none."""
    first = vertices[vertex_offsets[:-1]]
    last = vertices[vertex_offsets[1:] - 1]
    metres = np.maximum(_from_middle(first, first), _from_middle(last, first))
    far = np.flatnonzero(metres > FAR * max(float(np.median(metres)), 1.0))
    return np.asarray(far[np.argsort(-metres[far], kind="stable")], np.int64)


def _describe_far(vertices: Float64, vertex_offsets: Int64, far: Int64) -> str:
    """Where roads are, and how far from the middle."""
    first = vertices[vertex_offsets[:-1]]
    ends = np.stack([first, vertices[vertex_offsets[1:] - 1]], axis=1)[far[:NAMED]]
    metres = np.stack([_from_middle(ends[:, side], first) for side in (0, 1)], axis=1)
    worst = metres.argmax(axis=1)
    words = [
        f"road {road} at latitude {point[side][0]:g}, longitude {point[side][1]:g} ({found[side] / 1000:,.0f} km)"
        for road, point, found, side in zip(far, ends, metres, worst, strict=False)
    ]
    more = f" and {len(far) - NAMED} more" if len(far) > NAMED else ""
    return f"{', '.join(words)}{more}"


def line_lengths(roads: Roads, swapped: bool = False) -> Float64:
    """Length of each road's line, float64 [N], metres; `swapped`: with latitude and longitude exchanged."""
    lat, lng = roads.vertices.T[::-1] if swapped else roads.vertices.T
    metres = haversine_m(lat[:-1], lng[:-1], lat[1:], lng[1:])
    metres = np.append(metres, 0.0)
    metres[roads.vertex_offsets[1:] - 1] = 0.0  # from a road's end to the next one's beginning
    return np.asarray(np.add.reduceat(metres, roads.vertex_offsets[:-1]))


def _from_middle(points: Float64, of: Float64) -> Float64:
    """Metres of each point from the median of the others."""
    middle = np.median(of, axis=0)
    return haversine_m(points[:, 0], points[:, 1], middle[0], middle[1])


def _merged_points(roads: Roads) -> list[str]:
    if not roads.merged_points:
        return []
    return [
        f"roadmap.geo: {counted(roads.merged_points, 'end point')} of roads "
        f"{form(roads.merged_points, 'lies', 'lie')} within 0.1 m of another one without being equal, as if the same "
        "point were written with other decimals; each is taken as the other"
    ]


def _open_links(roads: Roads, origin: Int64, destination: Int64) -> list[str]:
    """Pairs of `roadmap.rel` whose roads do not meet."""
    apart = np.flatnonzero(roads.end_point[origin] != roads.start_point[destination])
    if not len(apart):
        return []
    end, start = roads.vertices[roads.vertex_offsets[1:] - 1], roads.vertices[roads.vertex_offsets[:-1]]
    a, b = end[origin[apart]], start[destination[apart]]
    metres = haversine_m(a[:, 0], a[:, 1], b[:, 0], b[:, 1])
    row, worst = apart[0], float(metres.max())
    return [
        f"roadmap.rel: {len(apart)} of {counted(len(origin), 'pair')} {form(len(apart), 'does', 'do')} not meet: the "
        f"second road begins elsewhere than the first ends, {np.median(metres):.3g} m in the median, {worst:.3g} m at "
        f"most (first: row {row}, roads {origin[row]} and {destination[row]}). If they are neighbours, write their "
        "common points alike, with 6 decimals or more: roads that share no point are no neighbours in the road graph"
    ]


def _lengths(roads: Roads) -> list[str]:
    """Of units, and of latitude and longitude: both are seen where lengths are held against lines."""
    found = []
    line = line_lengths(roads)
    known = (line > 0) & (roads.length > 0)
    if not known.any():
        return ["roadmap.geo: no road has a length and a line; all lengths are 0 or all lines are points"]
    ratio = roads.length[known] / line[known]
    spread = _spread(ratio)
    if np.abs(roads.vertices).max() <= 90 and spread > SPREAD:
        swapped = line_lengths(roads, swapped=True)[known]
        other = roads.length[known] / np.maximum(swapped, 1e-9)
        if _spread(other) * FITS_BETTER < spread:
            found.append(
                "roadmap.geo, column coordinates: lengths fit the lines much better if latitude and longitude are "
                f"exchanged (median deviation {100 * _spread(other):.1f} % instead of {100 * spread:.1f} %); "
                "points are [longitude, latitude], and now the first road begins at latitude "
                f"{roads.vertices[0, 0]:g}, longitude {roads.vertices[0, 1]:g}"
            )
            ratio = other
    return found + _units(float(np.median(ratio)), int(known.sum()))


def _units(median: float, count: int) -> list[str]:
    """Of the median ratio of length and line."""
    if 1 / ODD <= median <= ODD:
        return []
    likely = [unit for unit, number in UNITS.items() if 1 / NEAR <= median / number <= NEAR]
    unit = f" They look like {likely[0]}: convert them to metres" if likely else " Lengths are metres: convert them"
    of = counted(count, "road")
    return [f"roadmap.geo, column length: the median of {of} is {median:.4g} times as long as its line.{unit}"]


def _spread(ratio: Float64) -> float:
    """Median |log(ratio / median)|: does not depend on the unit."""
    logs = np.log(ratio)
    return float(np.median(np.abs(logs - np.median(logs))))


def _far_roads(roads: Roads) -> list[str]:
    far = far_roads(roads.vertices, roads.vertex_offsets)
    if not len(far):
        return []
    named = _describe_far(roads.vertices, roads.vertex_offsets, far)
    return [
        f"roadmap.geo: {len(far)} of {counted(len(roads), 'road')} {form(len(far), 'lies', 'lie')} far from all "
        f"others: {named}. Mend or remove {form(len(far), 'it', 'them')}, or set grid.bounds: the grid and the "
        "features of places are made for all roads"
    ]
