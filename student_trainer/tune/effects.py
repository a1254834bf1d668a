"""Settings of a study that would have no effect in a run of it: what `train` refuses, found before the study starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from shared.errors import ConfigError
from student_trainer.train.config import RecipeConfig, TrainConfig
from student_trainer.tune import space
from student_trainer.tune.config import TuneConfig

DECIDE_EFFECTS = ("batch.sampled", "distill.")
"""Settings (or their beginnings) that others may depend on to have an effect; see `TrainConfig.check_effects`."""
MOST_POINTS = 1024
"""Of a space that are looked at for settings without an effect."""


def without_effect(settings: TuneConfig) -> Iterator[str]:
    """What `train` would refuse of the distilled runs, each reason once, with the first point that it is met at."""
    deciding = {name: p.corners() for name, p in settings.space.items() if name.startswith(DECIDE_EFFECTS)}
    searched = itertools.product(*deciding.values()) if 1 in settings.phases else ()
    points = [dict(zip(deciding, values, strict=True)) for values in itertools.islice(searched, MOST_POINTS)]
    told = set()
    for point in points or [{}] * (2 in settings.phases):
        recipe = space.apply(settings.train, point)
        sections = {name: getattr(recipe, name) for name in RecipeConfig.model_fields}
        try:
            TrainConfig(data=settings.data, teacher=settings.teacher, out=settings.out, **sections).check_effects()
        except ConfigError as error:
            if str(error) not in told:
                at = ", ".join(f"{name}={value}" for name, value in point.items())
                yield f"space: at {at}: {error}" if at else str(error)
            told.add(str(error))
