"""What a run fits to its teacher's answers before the first step, on its validation trips: see `distill.fitted`.

Not on the labelled trips: a teacher that was trained on these knows them by heart, and the fit would trust it more than
it deserves everywhere else. The fit is a function of the data, the settings and the teacher's answers, so that every
run with the same ones begins with the same; it is stored in checkpoints, and a resumed run takes it from there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np

from shared.arrays import Float16, Float64, Int64
from shared.subset import draw
from student_trainer.data.batch import Batch
from student_trainer.distill.conditional_logit import Choices
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.destination import DestinationTarget, choices_of
from student_trainer.distill.fitted import UNFITTED, Fitted, cells_of, fit_sharpness
from student_trainer.train.config import TrainConfig
from student_trainer.train.feed import Feed
from student_trainer.train.ranks import Ranks
from student_trainer.train.trips import RunTrips

log = logging.getLogger(__name__)

TRIPS = 2_000
"""Validation trips that are enough for a handful of coefficients; of more a sample is taken."""
BATCH = 64
OVERCONFIDENT = 0.5
"""Answers of less sharpness are calibrated: a head that learns from them as they are makes whole trips longer. Sharper
ones teach as well or better as they are; docs/results/regimes.md."""


def give_fitted(
    known: Fitted | None,
    feed: Feed,
    val_feed: Feed,
    trips: RunTrips,
    length: Float64,
    settings: TrainConfig,
    ranks: Ranks,
) -> None:
    """Gives both feeds what a run fits.

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
    if settings.distill.target == "destination":
        progress = settings.log.progress and ranks.is_first
        feed.measure_ways(length, trips.numbers, progress)
        val_feed.measure_ways(length, np.arange(len(trips.validation)), progress)
    if known is None:

        def fit_on_first() -> Fitted | None:
            if not ranks.is_first:
                return None
            return fit(val_feed, len(trips.validation), settings.batch.sample_seed, settings.distill)

        known = ranks.broadcast(ranks.together(fit_on_first))
        assert known is not None, "the first rank has fitted it, or all have failed"
    feed.fitted = val_feed.fitted = known


def fit(feed: Feed, trips: int, seed: int, distill: DistillConfig) -> Fitted:
    """Asks the teacher about trips of a feed, and fits to its answers.

    Args:
        feed: of so many `trips`; a target is fitted if their ways are measured.
        seed: draws those that are used, if there are more than `TRIPS`.
        distill: whether the answers are calibrated.

    Raises:
        TeacherError: the teacher has failed.
        TrainingError: the trips leave no choice.
    """
    chosen = draw(trips, TRIPS, seed)
    answered = list(answers_about(feed, chosen))
    fitted = UNFITTED
    if distill.calibrate != "never":
        sharpness, found = fit_sharpness(Choices.joined([cells_of(batch, log_q) for batch, log_q in answered]))
        is_used = distill.calibrate == "always" or sharpness < OVERCONFIDENT
        log.info(
            "sharpness of the teacher's answers %.3f, fitted on %d positions of %d validation trips: nll %.4f where "
            "there is a choice among cells; they are %s",
            sharpness, found.positions, len(chosen), found.nll, "calibrated" if is_used else "taken as they are",
        )  # fmt: skip
        fitted = dataclasses.replace(fitted, sharpness=sharpness if is_used else 1.0)
    if feed.has_ways:
        choices = [choices_of(batch, feed.features(batch), log_q) for batch, log_q in answered]
        target, found = DestinationTarget.fitted(Choices.joined(choices))
        log.info(
            "destination-aware target, fitted on %d positions of %d validation trips: nll %.4f where there is a "
            "choice; %s",
            found.positions, len(chosen), found.nll, target,
        )  # fmt: skip
        fitted = dataclasses.replace(fitted, target=target)
    return fitted


def answers_about(feed: Feed, trips: Int64) -> Iterator[tuple[Batch, Float16]]:
    """Batches of some trips with the teacher's answers [K] to them, all asked at once; raises `TeacherError`."""
    items = [feed.prepare(trips[start : start + BATCH]) for start in range(0, len(trips), BATCH)]
    for item in items:
        reply = item.answer("wait")
        assert reply is not None, "the feed of a run that distils asks"
        yield item.batch, reply.log_probs
