"""The destination-aware target of a run, fitted on its validation trips before the first step.

Not on the labelled trips: a teacher that was trained on these knows them by heart, and the fit would trust it more than
it deserves everywhere else. The fit is a function of the data, the settings and the teacher's answers, so that every
run with the same ones begins with the same target; it is stored in checkpoints, and a resumed run takes it from there.
"""

from __future__ import annotations

import logging

import numpy as np

from shared.arrays import Float64, Int64
from shared.errors import TrainingError
from shared.subset import draw
from shared.training.torch_ranks import Ranks
from student_trainer.distill.conditional_logit import FEW_POSITIONS, Choices
from student_trainer.distill.destination import FEATURES, DestinationTarget, choices_of
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.trips import RunTrips

log = logging.getLogger(__name__)

TRIPS = 2_000
"""Validation trips that are enough for a handful of coefficients; of more a sample is taken."""
BATCH = 64


def give_target(
    known: DestinationTarget | None,
    feed: Feed,
    val_feed: Feed,
    trips: RunTrips,
    length: Float64,
    settings: TrainConfig,
    ranks: Ranks,
) -> None:
    """Gives both feeds the target of a run.

    Args:
        known: that of a resumed run; None to fit it, which the first rank does.
        feed, val_feed: of the run's trips.
        trips: these.
        length: float64 [N], metres of each road.
        settings: of the run.
        ranks: who trains.

    Raises:
        ConfigError: the settings cut candidates.
        TeacherError: the teacher has failed.
        TrainingError: the validation trips leave no choice.
    """
    progress = settings.log.progress and ranks.is_first
    feed.measure_ways(length, trips.numbers, progress)
    val_feed.measure_ways(length, np.arange(len(trips.validation)), progress)
    if known is None:
        seed = settings.batch.sample_seed
        known = ranks.together(lambda: fit_target(val_feed, len(trips.validation), seed) if ranks.is_first else None)
        known = ranks.broadcast(known)
    feed.target = val_feed.target = known


def fit_target(feed: Feed, trips: int, seed: int) -> DestinationTarget:
    """Asks the teacher about trips of a feed, and fits the target to them.

    Args:
        feed: of so many `trips`, whose ways are measured.
        seed: draws those that are used, if there are more than `TRIPS`.

    Raises:
        TeacherError: the teacher has failed.
        TrainingError: the trips leave no choice.
    """
    chosen = draw(trips, TRIPS, seed)
    try:
        target, fit = DestinationTarget.fitted(choices_among(feed, chosen))
    except TrainingError as error:
        raise TrainingError(
            f"the destination-aware target cannot be fitted on {len(chosen)} validation trips: {error}. "
            "Set distill.target=history, or prepare more validation trips"
        ) from None
    log.info(
        "destination-aware target, fitted on %d positions of %d validation trips: nll %.4f where there is a choice; %s",
        fit.positions, len(chosen), fit.nll, target,
    )  # fmt: skip
    if fit.positions < FEW_POSITIONS:
        log.warning(
            "%d positions are few for %d coefficients, which may fit these alone; validate on more trips "
            "(batch.val_trips, the store's val split), or set distill.target=history", fit.positions, len(FEATURES),
        )  # fmt: skip
    return target


def choices_among(feed: Feed, trips: Int64) -> Choices:
    """The positions of some trips with all features; raises `TeacherError`."""
    items = [feed.prepare(trips[start : start + BATCH]) for start in range(0, len(trips), BATCH)]
    parts = []
    for item in items:
        reply = item.answer("wait")
        assert reply is not None, "the feed of a run that distils asks"
        parts.append(choices_of(item.batch, feed.features(item.batch), reply.log_probs))
    return Choices.joined(parts)
