"""Settings of the remembered answers."""

from __future__ import annotations

from pathlib import Path

import pydantic

from shared.config import Section


class CacheConfig(Section):
    """What the teacher remembers: it is frozen, so an answer holds for ever."""

    mib: int = pydantic.Field(256, ge=0)
    """Memory for answers, MiB: about 100 bytes for a position with a window of up to 8. 0: nothing is remembered,
    and only rows in flight are shared. Up to a seventh is taken at the start, the rest as it fills. Changes no
    answer."""
    file: Path | None = None
    """Written every `save_seconds` and when the daemon drains, read when it starts, so that a restarted teacher is
    warm; ignored if it is of other weights or another device, and never written if it is something else. none: not
    kept."""
    save_seconds: float = pydantic.Field(300.0, ge=0)
    """Seconds from one writing of `file` to the next: what a daemon loses that is killed. At most `mib` are written
    each time, slowly, and nothing if nothing was computed. 0: only when the daemon drains."""
