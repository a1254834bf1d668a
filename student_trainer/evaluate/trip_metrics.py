"""The metrics of pairs of a real and a generated trip, one declaration each.

A declaration says how a metric is computed, what it is called, and where it appears; all else follows. `evaluate`
writes its column of `pairs.parquet` and its mean with an interval, `compare` tests it, `report` shows it on a card,
beside the trips of the map, and as an order of them. A new metric is a function here and a line in `METRICS`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from shared.arrays import Bool, Float64, Int64
from shared.store import Trips
from student_trainer.data.network import RoadNetwork
from student_trainer.evaluate import measures
from student_trainer.evaluate.measures import Cells, PairMeasures, TripMeasures

Group = Literal["arrival", "global", "local", "time", "next_road"]
Better = Literal["lower", "higher"]


@dataclasses.dataclass(frozen=True, eq=False)
class Pairs:
    """n pairs of a real and a generated trip; what several metrics need is measured once.

    Attributes:
        real, generated: the k-th trips of both are a pair.
        destination: int64 [n], the roads that were asked for.
    """

    network: RoadNetwork
    real: Trips
    generated: Trips
    destination: Int64

    @functools.cached_property
    def arrived(self) -> Bool:
        """Whether each generated trip ends at its destination, [n]."""
        return np.asarray(self.generated.roads[self.generated.offsets[1:] - 1] == self.destination)

    @functools.cached_property
    def cells(self) -> Cells:
        """Cells of the network."""
        return Cells.over(self.network)

    @functools.cached_property
    def real_measures(self) -> TripMeasures:
        """Of the real trips."""
        return measures.measure_trips(self.network, self.real)

    @functools.cached_property
    def generated_measures(self) -> TripMeasures:
        """Of the generated trips."""
        return measures.measure_trips(self.network, self.generated)

    @functools.cached_property
    def distances(self) -> PairMeasures:
        """Local distances."""
        return measures.measure_pairs(self.network, self.real, self.generated)


@dataclasses.dataclass(frozen=True)
class PairMetric:
    """A number, or yes or no, of each pair, and its mean.

    Attributes:
        name: of the mean, with its unit: a key of `metrics.json`.
        column: of `pairs.parquet`.
        measure: pairs -> float64 [n], NaN where it is not defined, or bool [n].
        of_arrived: there is also the mean over trips that arrived, `<name>_arrived`.
        of_cells: there is also the mean as upstream has it, `<name>_od_cells_upstream`; `measure` may then not read
            the destination.
        of_durations: it is of how long trips take, and means nothing where a split's durations are placeholders.
        is_compared: whether `compare` tests it.
        is_card: whether a report's summary shows it.
        beside_trips: its heading beside the trips of the map; empty: it is not there.
        order: what the map calls the order of trips by it, largest first; empty: there is none.
    """

    name: str
    column: str
    group: Group
    label: str
    unit: str
    better: Better
    description: str
    measure: Callable[[Pairs], npt.NDArray]
    is_flag: bool = False
    of_arrived: bool = False
    of_cells: bool = False
    of_durations: bool = False
    is_compared: bool = True
    is_card: bool = False
    beside_trips: str = ""
    order: str = ""

    def on_map(self) -> dict[str, Any]:
        """How the map shows it, as JSON."""
        return {"column": self.column, "unit": self.unit, "heading": self.beside_trips, "order": self.order}


def _in_destination_cell(pairs: Pairs) -> Bool:
    ends = pairs.cells.ends(pairs.generated)[:, 1]
    return np.asarray(ends == pairs.cells.of_road[pairs.destination])


def _duration_error(pairs: Pairs) -> Float64:
    return np.abs(pairs.generated_measures.duration_s - pairs.real_measures.duration_s)


def _relative_duration_error(pairs: Pairs) -> Float64:
    real = pairs.real_measures.duration_s
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(real > 0, _duration_error(pairs) / real, np.nan))


METRICS: tuple[PairMetric, ...] = (
    PairMetric(
        "arrival_rate", "arrived", "arrival", "Arrived", "share", "higher",
        "Share of the pairs whose trip ends at the destination that was asked for.",
        lambda pairs: pairs.arrived, is_flag=True, is_card=True,
    ),
    PairMetric(
        "od_cell_match_rate", "in_destination_cell", "arrival", "OD cells reached", "share", "higher",
        "Share of the pairs whose trip ends in the 0.001° cell of the destination that was asked for.",
        _in_destination_cell, is_flag=True,
    ),
    PairMetric(
        "same_route_rate", "same_route", "arrival", "Same route", "share", "higher",
        "Share of the pairs whose trip is the real one, road by road.",
        lambda pairs: measures.same_routes(pairs.real, pairs.generated), is_flag=True,
    ),
    PairMetric(
        "hausdorff_km", "hausdorff_km", "local", "Hausdorff distance", "km", "lower",
        "largest distance of a point of one trip from the other",
        lambda pairs: pairs.distances.hausdorff_km,
        of_arrived=True, of_cells=True, is_card=True, beside_trips="Hausdorff", order="farthest first",
    ),
    PairMetric(
        "dtw_km", "dtw_km", "local", "Dynamic time warping", "km", "lower",
        "sum of distances along the best warping of one onto the other",
        lambda pairs: pairs.distances.dtw_km, of_arrived=True, of_cells=True, beside_trips="DTW",
    ),
    PairMetric(
        "dtw_per_point_km", "dtw_per_point_km", "local", "Dynamic time warping per road", "km", "lower",
        "sum of distances along the best warping of one onto the other, divided by the mean number of roads of the two",
        lambda pairs: pairs.distances.dtw_per_point_km, of_arrived=True, of_cells=True, is_card=True,
    ),
    PairMetric(
        "edr", "edr", "local", "Edit distance (100 m)", "share", "lower",
        "edits that make one trip the other, points within 100 m being equal, divided by the longer one's roads",
        lambda pairs: pairs.distances.edr, of_arrived=True, of_cells=True, is_card=True, beside_trips="EDR",
    ),
    PairMetric(
        "trip_duration_error_s", "duration_error_s", "time", "Trip duration, error", "s", "lower",
        "absolute difference from the real duration",
        _duration_error, of_arrived=True, of_durations=True, is_card=True, order="time most wrong first",
    ),
    PairMetric(
        "trip_duration_error_relative", "duration_error_relative", "time", "Trip duration, relative error", "share",
        "lower", "absolute difference divided by the real duration, where that is above 0",
        _relative_duration_error, of_durations=True, is_compared=False,
    ),
    PairMetric(
        "trip_distance_error_km", "distance_error_km", "time", "Trip distance, error", "km", "lower",
        "absolute difference from the real distance",
        lambda pairs: np.abs(pairs.generated_measures.distance_km - pairs.real_measures.distance_km),
    ),
)  # fmt: skip


def measure(pairs: Pairs) -> dict[str, npt.NDArray]:
    """Every metric of each pair, by column."""
    return {metric.column: metric.measure(pairs) for metric in METRICS}
