"""Settings of `student-trainer convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.config import Section, Seed

DRIVABLE = (
    *("motorway", "motorway_link", "trunk", "trunk_link", "primary", "primary_link", "secondary", "secondary_link"),
    *("tertiary", "tertiary_link", "unclassified", "residential", "living_street", "road"),
)


class NetworkConfig(Section):
    """How roads are read."""

    id: tuple[str, ...] = ("id",)
    """GeoJSON: the property that names a road in the trips, or several, joined by hyphens (u,v,key of osmnx). Without
    such a property the feature's own id."""
    highway: str = "highway"
    """GeoJSON: the property with the class."""
    length: str = "length"
    """GeoJSON: the property with the length, metres; where it is missing the line is measured."""
    directions: Literal["as_given", "oneway"] = "as_given"
    """GeoJSON: as_given, each feature is a road of one direction, that of its line; oneway, a feature whose property
    oneway is not true is two, and the opposite one is named -ID."""
    classes: tuple[str, ...] = DRIVABLE
    """OpenStreetMap: values of highway that are roads."""
    u_turns: bool = True
    """Whether the opposite of a road may follow it."""


class TripsConfig(Section):
    """How trips are read."""

    trip: str = "trip"
    """Column that says which rows are one trip."""
    road: str = "road"
    """Column with the road's name in the network."""
    time: str = "time"
    """Column with the time at which the road is entered: seconds since 1970, or a date and a time as in
    2008-05-22 13:10:06, whose clock is taken as it is printed."""


class SplitConfig(Section):
    """How trips become train, val and test."""

    by: Literal["random", "time"] = "random"
    """random: by chance; time: the latest are for test, those before for val."""
    val: float = pydantic.Field(0.1, gt=0, lt=1)
    """Share of the trips."""
    test: float = pydantic.Field(0.1, gt=0, lt=1)
    """Share of the trips."""
    seed: Seed = 0
    """Of the chance."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> SplitConfig:
        if self.val + self.test >= 1:
            raise ValueError("split.val and split.test leave nothing for train")
        return self


class ConvertConfig(Section):
    """Root schema of `convert`."""

    roads: Path
    """The network: GeoJSON (.geojson, .json) or OpenStreetMap (.osm, .osm.pbf, compressed ones too)."""
    trips: Path
    """Trips as CSV, a row for each road of a trip."""
    out: Path
    """Directory to write in HOSER format; an older converted city there is replaced."""
    network: NetworkConfig = NetworkConfig()
    """Roads."""
    columns: TripsConfig = TripsConfig()
    """Trips."""
    split: SplitConfig = SplitConfig()
    """Splits."""
