"""Settings of `student-trainer demo-city`."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.config import Section, Seed


class TripCounts(Section):
    """Trips of each split."""

    train: int = pydantic.Field(2400, ge=1)
    """Trips in train.csv."""
    val: int = pydantic.Field(300, ge=1)
    """Trips in val.csv."""
    test: int = pydantic.Field(600, ge=1)
    """Trips in test.csv."""


class DemoCityConfig(Section):
    """Root schema of `demo-city`."""

    out: Path
    """Directory to write in HOSER format; an older demo city there is replaced."""
    seed: Seed = 0
    """Seed of everything: the same seed and settings give the same bytes."""
    columns: int = pydantic.Field(15, ge=9, le=60)
    """Streets that run south to north."""
    rows: int = pydantic.Field(13, ge=9, le=60)
    """Streets that run west to east."""
    drivers: int = pydantic.Field(150, ge=1)
    """People, each with a home, a place of work and a taste in roads."""
    weeks: int = pydantic.Field(4, ge=1)
    """Time that the trips are spread over."""
    trips: TripCounts = TripCounts()
    """How many trips to write."""
