"""Which trips a run trains on and validates on, and in which order."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import numpy as np

from shared.arrays import Int64
from shared.errors import ConfigError
from shared.store import Store, Trips
from shared.subset import choose
from student_trainer.data.loader import TripOrder
from student_trainer.data.mixed import MixedTrips, Numbered
from student_trainer.data.sampled import differences, load_sampled, read_document, sampled_digest
from student_trainer.data.turns import unseen_share
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.train.schedule import Schedule

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Mixing:
    """How labelled and sampled trips are mixed.

    Attributes:
        passes: over the labelled trips in a mixed epoch, which has one over the sampled ones.
        epochs: so many are mixed, the first ones; those after them have labelled trips alone.
    """

    passes: int
    epochs: int


@dataclasses.dataclass(frozen=True, eq=False)
class RunTrips:
    """The trips of a run.

    Attributes:
        training: labelled trips, and sampled ones if there are any.
        labelled, sampled: int64, numbers of those that it trains on.
        first_sampled: from which number on trips of `training` are sampled; None if all are labelled.
        validation: those that it is validated on.
        mixing: how often, and how long, both kinds come.
        sampled_digest: of the directory of sampled trips, also if they are left out; empty without one.
    """

    training: Numbered
    labelled: Int64
    sampled: Int64
    first_sampled: int | None
    validation: Trips
    mixing: Mixing
    sampled_digest: str = ""

    @property
    def numbers(self) -> Int64:
        """All that it trains on: int64, ascending."""
        return np.concatenate([self.labelled, self.sampled])

    def epoch(self, number: int) -> Int64:
        """What an epoch consists of: int64, each trip as often as it comes.

        After the mixed epochs the labelled trips alone come in turn, as many as a mixed epoch has of both kinds: an
        epoch goes on where the one before it ended.
        """
        mixed = np.concatenate([np.tile(self.labelled, self.mixing.passes), self.sampled])
        gone = (number - self.mixing.epochs) * len(mixed)
        return mixed if gone < 0 else np.resize(np.roll(self.labelled, -gone), len(mixed))

    def __str__(self) -> str:
        passes, epochs = dataclasses.astuple(self.mixing)
        often = "" if passes == 1 else f" {passes} times an epoch"
        mixed_in = f" and {len(self.sampled)} sampled ones until epoch {epochs}" if len(self.sampled) else ""
        return f"{len(self.labelled)} training trips{often}{mixed_in}, {len(self.validation)} validation trips"


def open_trips(store: Store, settings: RecipeConfig, revision: str = "") -> RunTrips:
    """Opens and chooses them.

    Args:
        store: whose they are.
        settings: of the run.
        revision: of the teacher's weights, if it has one.

    Raises:
        ConfigError: there are fewer than wanted.
        CompatibilityError: the sampled ones are of another store.
        FileFormatError: a file of them is missing or damaged.
    """
    train, val = store.trips("train", settings.batch.cache), store.trips("val", settings.batch.cache)
    batch, epochs = settings.batch, settings.optim.epochs
    if batch.val_trips:
        val = val.take(choose(val, batch.val_trips, batch.sample_seed, "batch.val_trips", "validation"))
    chosen = choose(train, batch.train_trips, batch.sample_seed, "batch.train_trips", "training")
    sampled, digest = None, ""
    if batch.sampled is not None:
        sampled = _sampled(store, batch.sampled, batch.sampled_trips)
        document = read_document(batch.sampled)
        digest = sampled_digest(document)
        for difference in differences(document, batch.sampled, revision, batch.train_trips, batch.sample_seed):
            log.warning("%s", difference)
    if sampled is None or not (batch.sampled_share or _show_enough(train.take(chosen), sampled)):
        mixing = mixing_of(len(chosen), 0, epochs, batch.labelled_passes)
        return RunTrips(train, chosen, np.zeros(0, np.int64), None, val, mixing, digest)
    mixed = MixedTrips(train, sampled)
    numbers = mixed.first_sampled + np.arange(len(sampled))
    mixing = mixing_of(len(chosen), len(sampled), epochs, batch.labelled_passes, batch.sampled_share)
    return RunTrips(mixed, chosen, numbers, mixed.first_sampled, val, mixing, digest)


def _sampled(store: Store, folder: Path, wanted: int) -> Trips:
    """The first so many of the sampled trips, or all."""
    sampled = load_sampled(folder, store)
    if wanted > len(sampled):
        raise ConfigError(f"batch.sampled_trips is {wanted}, but {folder} has {len(sampled)} sampled trips")
    return sampled.take(np.arange(wanted or len(sampled)))


LEAST_UNSEEN = 0.015
"""Sampled trips of which labelled ones show all but so much take steps that labelled ones teach more in: 2.2 % were
worth it, 0.8 % were not (docs/results/regimes.md)."""


def _show_enough(labelled: Trips, sampled: Trips) -> bool:
    """Whether sampled trips are worth mixing in; says so."""
    unseen = unseen_share(labelled, sampled)
    told = f"{100 * unseen:.1f} % of the turns of {len(sampled)} sampled trips are on none of {len(labelled)} training"
    if unseen < LEAST_UNSEEN:
        log.info("%s trips: they are left out (batch.sampled_share=0.5 mixes them in)", told)
        return False
    log.info("%s trips", told)
    return True


MOST_PASSES = 8
"""Few labelled trips that would have to come more often in an epoch come once: whole trips suffered."""
MOST_TIMES = 30
"""A labelled trip comes no more often in a run because sampled ones stay away: few of them are learned by heart.
Both bounds are those of docs/results/regimes.md."""


def mixing_of(labelled: int, sampled: int, epochs: int, passes: int = 0, share: float = 0) -> Mixing:
    """How trips are mixed.

    Args:
        labelled, sampled: trips of each kind.
        epochs: of the run.
        passes: over labelled trips in a mixed epoch; 0 for as many as make both kinds about equal, or 1 if these are
            more than MOST_PASSES.
        share: of the epochs that are mixed; 0 for a half, or for so many more that a labelled trip comes at most
            MOST_TIMES in the run.
    """
    equal = max(round(sampled / labelled), 1)
    passes = passes or (equal if equal <= MOST_PASSES else 1)
    if share:
        return Mixing(passes, math.ceil(round(share * epochs, 9)))
    more_times = max(MOST_TIMES - passes * epochs, 0)
    alone = min(epochs // 2, more_times * labelled // sampled) if sampled else 0
    return Mixing(passes, epochs - alone)


def schedule_of(trips: RunTrips, settings: TrainConfig) -> Schedule:
    """Which of the trips form which optimizer step."""

    def order(index: Int64) -> TripOrder:
        steps = trips.training.lengths_of(index) - 1
        if settings.batch.max_steps:
            steps = np.minimum(steps, settings.batch.max_steps)
        return TripOrder(index, steps, settings.optim.batch_size, settings.batch.bucket_batches, settings.seed)

    mixed = order(trips.epoch(0))

    def order_of(epoch: int) -> TripOrder:
        return mixed if epoch < trips.mixing.epochs else order(trips.epoch(epoch))

    return Schedule(order_of, settings.optim.accumulation, settings.optim.epochs)
