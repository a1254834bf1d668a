"""Times that say nothing: whether a split's departures or durations are placeholders.

Public data sets have been published with every trip at noon, or with a second from each road to the next. Such times
train and test without a complaint, and differences of them are tested to any p-value.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np

from shared.arrays import Int64
from shared.store import Trips

DAY = 86_400
FEWEST = 20
"""Trips below which nothing is said."""
SHARE = 0.9
"""Trips or steps that have one and the same value, of all, from which on it is taken for a placeholder."""
DEPARTURES, DURATIONS = "departures", "durations"
"""What may be a placeholder: the times of day at which trips begin; the seconds that roads and trips take."""

LEFT_OUT = "Metrics of time are left out of evaluations on {}"


@dataclasses.dataclass
class Clock:
    """How often times occur in a split: its times of day at departure, seconds of a step, seconds of a trip."""

    departures: Counter[int] = dataclasses.field(default_factory=Counter)
    steps: Counter[int] = dataclasses.field(default_factory=Counter)
    trips: Counter[int] = dataclasses.field(default_factory=Counter)

    @classmethod
    def of(cls, trips: Trips) -> Clock:
        """Of usable trips: two roads or more each."""
        first, last = trips.times[trips.offsets[:-1]], trips.times[trips.offsets[1:] - 1]
        inside = np.ones(len(trips.times), bool)
        inside[trips.offsets[:-1]] = False
        steps = np.diff(trips.times, prepend=trips.times[:1])[inside]
        return cls(_counted(first % DAY), _counted(steps), _counted(last - first))

    def add(self, other: Clock) -> None:
        """Counts another block's times, too."""
        self.departures.update(other.departures)
        self.steps.update(other.steps)
        self.trips.update(other.trips)

    def facts(self, split: str) -> dict[str, Any]:
        """What the store keeps: which times are placeholders, and sentences about them."""
        placeholders, findings = [], []
        count = self.departures.total()
        if count >= FEWEST and (found := _commonest(self.departures)) is not None:
            value, share = found
            placeholders.append(DEPARTURES)
            findings.append(
                f"{split}.csv: {100 * share:.1f} % of {count} trips begin at {_time_of_day(value)}: a placeholder "
                "rather than a time. The hour and the weekday teach a student nothing"
            )
        for values, unit in ((self.steps, "steps from road to road"), (self.trips, "trips")):
            if count >= FEWEST and DURATIONS not in placeholders and (found := _commonest(values)) is not None:
                value, share = found
                placeholders.append(DURATIONS)
                so = "Travel times that students learn mean nothing" if split == "train" else LEFT_OUT.format(split)
                findings.append(
                    f"{split}.csv: {100 * share:.1f} % of {values.total()} {unit} take {value} s: a "
                    f"placeholder rather than a duration. {so}"
                )
        return {"placeholders": placeholders, "findings": findings}


def _commonest(values: Counter[int]) -> tuple[int, float] | None:
    """The commonest value and its share, if that is a placeholder's."""
    ((value, count),) = values.most_common(1)
    share = count / values.total()
    return (value, share) if share >= SHARE else None


def _counted(values: Int64) -> Counter[int]:
    found, how_often = np.unique(values, return_counts=True)
    return Counter(dict(zip(found.tolist(), how_often.tolist(), strict=True)))


def _time_of_day(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
