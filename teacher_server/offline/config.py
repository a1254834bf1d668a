"""Settings of `answer`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import pydantic

from shared.address import ServerText
from shared.answers_file import WHOLE_HISTORY
from shared.channel import ChannelConfig
from shared.config import Section, split_commas
from teacher_server.engine.config import EngineConfig

OVERWRITE = "add overwrite=true"
"""What a user may do about an answers file that is there."""

SampledDirectories = Annotated[tuple[Path, ...], pydantic.BeforeValidator(split_commas)]


Windows = Annotated[tuple[Annotated[int, pydantic.Field(ge=0)], ...], pydantic.BeforeValidator(split_commas)]


class AnswerConfig(Section):
    """`answer`: writes all that training on a store needs of a teacher into a file."""

    data: Path
    """The store that `student-trainer prepare` wrote: its training and validation trips are asked about."""
    out: Path
    """The answers file to write; `student-trainer train --teacher file:ANSWERS` reads it."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    teacher: Path | None = None
    """A teacher file, which is loaded here."""
    address: ServerText | None = None
    """HOST:PORT or unix:PATH of a running server, which is asked instead."""
    sampled: SampledDirectories = ()
    """Directories of sampled trips on the store's roads, separated by commas: they are asked about, too."""
    windows: Windows = (4,)
    """Cells of history that the teacher sees after SOT, as distill.window in training; several, separated by commas,
    for a study that searches it. 0: the whole trip so far, which is asked about trip by trip, and alone."""
    max_steps: int = pydantic.Field(0, ge=0)
    """The last steps that are kept of longer trips, as batch.max_steps in training; 0: all."""
    engine: EngineConfig = EngineConfig()
    """How a teacher file computes."""
    channel: ChannelConfig = ChannelConfig()
    """How to reach a server."""
    timeout: float = pydantic.Field(60.0, gt=0)
    """Seconds that a server may take for a request."""
    retry_seconds: float = pydantic.Field(60.0, ge=0)
    """How long a request that a server cannot take now is tried again, with growing pauses."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> AnswerConfig:
        if not self.windows or (len(set(self.windows)) > 1 and WHOLE_HISTORY in self.windows):
            raise ValueError("windows: give at least one; 0, the whole history, has a file of its own")
        if (self.teacher is None) == (self.address is None):
            raise ValueError("give either --teacher FILE or --address HOST:PORT")
        return self
