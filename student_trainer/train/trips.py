"""Which trips a run trains on and validates on, and in which order."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared.arrays import Int64
from shared.errors import ConfigError
from shared.store import SplitName, Store, Trips
from student_trainer.data.labelled import choose
from student_trainer.data.loader import TripOrder
from student_trainer.data.mixed import MixedTrips, Numbered
from student_trainer.data.sampled import load_sampled
from student_trainer.train.config import TrainConfig
from student_trainer.train.schedule import Schedule


@dataclasses.dataclass(frozen=True, eq=False)
class RunTrips:
    """The trips of a run.

    Attributes:
        training: labelled trips, and sampled ones if there are any.
        labelled, sampled: int64, numbers of those that it trains on.
        first_sampled: from which number on trips of `training` are sampled; None if all are labelled.
        validation: those that it is validated on.
        passes: over the labelled trips in an epoch, which has one over the sampled ones.
    """

    training: Numbered
    labelled: Int64
    sampled: Int64
    first_sampled: int | None
    validation: Trips
    passes: int = 1

    @property
    def numbers(self) -> Int64:
        """All that it trains on: int64, ascending."""
        return np.concatenate([self.labelled, self.sampled])

    @property
    def epoch(self) -> Int64:
        """What an epoch consists of: int64, a labelled trip as often as it comes."""
        return np.concatenate([np.tile(self.labelled, self.passes), self.sampled])

    def __str__(self) -> str:
        often = "" if self.passes == 1 else f" {self.passes} times an epoch"
        mixed_in = "" if self.first_sampled is None else f" and {len(self.sampled)} sampled ones"
        return f"{len(self.labelled)} training trips{often}{mixed_in}, {len(self.validation)} validation trips"


def open_trips(store: Store, settings: TrainConfig) -> RunTrips:
    """Opens and chooses them.

    Raises:
        ConfigError: there are fewer than wanted.
        CompatibilityError: the sampled ones are of another store.
        FileFormatError: a file of them is missing or damaged.
    """
    train, val = store.trips("train", settings.batch.cache), store.trips("val", settings.batch.cache)
    if settings.batch.val_trips:
        val = val.take(choose_trips(val, settings, "val"))
    chosen, wanted_passes = choose_trips(train, settings), settings.batch.labelled_passes
    if settings.batch.sampled is None:
        return RunTrips(train, chosen, np.zeros(0, np.int64), None, val, passes_of(len(chosen), 0, wanted_passes))
    sampled = load_sampled(settings.batch.sampled, store)
    wanted = settings.batch.sampled_trips or len(sampled)
    if wanted > len(sampled):
        raise ConfigError(
            f"batch.sampled_trips is {wanted}, but {settings.batch.sampled} has {len(sampled)} sampled trips"
        )
    mixed, passes = MixedTrips(train, sampled), passes_of(len(chosen), wanted, wanted_passes)
    return RunTrips(mixed, chosen, mixed.first_sampled + np.arange(wanted), mixed.first_sampled, val, passes)


MOST_PASSES = 8
"""Few labelled trips that would have to come more often come once: whole trips suffered (docs/results/regimes.md)."""


def passes_of(labelled: int, sampled: int, wanted: int = 0) -> int:
    """Passes over labelled trips in an epoch that has one over sampled ones.

    Args:
        labelled, sampled: trips of each kind.
        wanted: so many; 0 for as many as make both kinds about equal, or 1 if these are more than MOST_PASSES.
    """
    equal = max(round(sampled / labelled), 1)
    return wanted or (equal if equal <= MOST_PASSES else 1)


def schedule_of(trips: RunTrips, settings: TrainConfig) -> Schedule:
    """Which of the trips form which optimizer step."""
    index = trips.epoch
    steps = trips.training.lengths_of(index) - 1
    if settings.batch.max_steps:
        steps = np.minimum(steps, settings.batch.max_steps)
    order = TripOrder(index, steps, settings.optim.batch_size, settings.batch.bucket_batches, settings.seed)
    return Schedule(order, settings.optim.accumulation, settings.optim.epochs)


def choose_trips(trips: Trips, settings: TrainConfig, split: SplitName = "train") -> Int64:
    """All trips, or a sample of them that depends on the sample's seed alone: int64 [n], ascending.

    Raises:
        ConfigError: there are fewer than wanted.
    """
    wanted, kind = {
        "train": (settings.batch.train_trips, "training"),
        "val": (settings.batch.val_trips, "validation"),
    }[split]
    return choose(trips, wanted, settings.batch.sample_seed, f"batch.{split}_trips", kind)
