"""The plan of the city as SVG, coloured by road class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from shared.arrays import Float64
from student_trainer.demo_city.roads import Road
from student_trainer.demo_city.streets import Plan, Street
from student_trainer.demo_city.traffic import CLASSES

STYLE = {
    "motorway": ("#d1495b", 22),
    "motorway_link": ("#e58a95", 12),
    "primary": ("#e09f3e", 16),
    "secondary": ("#7a8b99", 11),
    "residential": ("#b8c0c8", 7),
}
MARGIN_M = 80.0
ARROW_M = 14.0


def render(plan: Plan, roads: Sequence[Road]) -> str:
    """The picture of the streets that some road uses; one-way streets carry an arrowhead."""
    streets = [plan.streets[number] for number in sorted({road.street for road in roads})]
    points = np.vstack([street.line for street in streets])
    low, high = points.min(axis=0) - MARGIN_M, points.max(axis=0) + MARGIN_M
    width, height = np.rint(high - low).astype(int)

    def path(line: Float64) -> str:
        return " ".join(f"{x - low[0]:.0f},{high[1] - y:.0f}" for x, y in line)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="800">',
        f'<rect width="{width}" height="{height}" fill="#f7f5f0"/>',
        f'<polyline points="{path(plan.river)}" fill="none" stroke="#9cc5dd" stroke-width="70"/>',
        f'<polygon points="{path(plan.park)}" fill="#c5dfb8"/>',
        *_streets(streets, path),
        *(f'<polygon points="{path(_arrow(street.line))}" fill="#555"/>' for street in streets if street.one_way),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _streets(streets: Sequence[Street], path: Callable[[Float64], str]) -> Iterable[str]:
    for road_class in reversed(CLASSES):
        colour, width = STYLE[road_class]
        yield f'<g fill="none" stroke="{colour}" stroke-width="{width}" stroke-linecap="round">'
        for street in streets:
            if street.road_class == road_class:
                yield f'<polyline points="{path(street.line)}"/>'
        yield "</g>"


def _arrow(line: Float64) -> Float64:
    """A small triangle in the middle of a line, pointing along it."""
    ahead = (line[-1] - line[0]) / np.hypot(*(line[-1] - line[0]))
    aside = np.array([-ahead[1], ahead[0]])
    middle = (line[0] + line[-1]) / 2
    triangle: Float64 = middle + ARROW_M * np.array([ahead, -0.6 * ahead + 0.7 * aside, -0.6 * ahead - 0.7 * aside])
    return triangle
