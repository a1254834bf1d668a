"""Settings of `sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.address import TeachersText, answers_path
from shared.config import Section, Seed
from shared.store import Cache
from student_trainer.distill.config import ClientConfig


class SampleConfig(Section):
    """Trips drawn from a teacher."""

    data: Path
    """Store that `prepare` wrote."""
    teacher: TeachersText
    """Addresses of teachers, as for train."""
    out: Path
    """Directory to write: four arrays as in a split of the store, and sampled.json."""
    trips: int = pydantic.Field(20_000, ge=1)
    """Trips to draw. The first trips of a longer draw are those of a shorter one."""
    policy: Literal["teacher", "destination"] = "teacher"
    """teacher: as the teacher says, up to the end of the trip; destination: towards the last road of one of the
    labelled trips that begin nearest, by the teacher's answer corrected for the destination as distill.target does."""
    seed: Seed = 0
    """Seed of all random numbers. Every walker has its own, so that trips do not depend on who walks beside it."""
    window: int = pydantic.Field(4, ge=0)
    """Cells of history that the teacher sees after SOT, as distill.window; 0 for the whole trip so far, as far as the
    teacher's block reaches."""
    ends: Literal["calibrated", "teacher"] = "calibrated"
    """Of policy=teacher. calibrated: add a number to log q(EOT), for each of some twenty ranges of a trip's length so
    far, fitted so that labelled trips end as often as they do (a window hides how long a trip is: q(EOT) alone makes
    trips several times too long); teacher: take q(EOT) as it is."""
    max_roads: int = pydantic.Field(300, ge=2, le=10_000)
    """Roads of a trip at most. Trips that have not ended then are dropped and counted."""
    train_trips: int = pydantic.Field(0, ge=0)
    """Labelled trips that may be used, as train's batch.train_trips: what is not the teacher's (the roads of a cell,
    departures, seconds on a road) comes from these alone. 0 for all of the training split."""
    sample_seed: Seed = 0
    """As train's batch.sample_seed: the same two settings choose the same trips."""
    smoothing: float = pydantic.Field(0.1, gt=0)
    """Added to how often labelled trips start on a road, and take a transition, before roads of one cell share its
    probability by these numbers."""
    walkers: int = pydantic.Field(4096, ge=1)
    """Walkers of a request at most; client.lookahead requests are under way at once. No trip depends on it."""
    csv: bool = False
    """Also write the trips as OUT/trips.csv, in the format that `prepare` reads."""
    cache: Cache = "auto"
    """As in training: where the training split is held."""
    client: ClientConfig = ClientConfig()
    """Connection to the teacher. on_failure: nothing can be skipped here."""
    replace: bool = False
    """Replace sampled trips in OUT."""

    @pydantic.field_validator("teacher")
    @classmethod
    def _is_there(cls, teacher: str) -> str:
        if teacher == "none":
            raise ValueError("trips are drawn from a teacher; give its address")
        if answers_path(teacher) is not None:
            raise ValueError("trips are drawn from a running teacher: a file of answers knows those of its trips alone")
        return teacher

    @pydantic.model_validator(mode="after")
    def _check(self) -> SampleConfig:
        if self.client.on_failure == "skip":
            raise ValueError("client.on_failure=skip: a trip has no step that can be skipped; use wait or abort")
        return self
