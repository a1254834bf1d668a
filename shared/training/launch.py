"""Whether a launcher started this process as one of several ranks; known without torch."""

from __future__ import annotations

import os


def is_one_of_several() -> bool:
    """Whether RANK and WORLD_SIZE, as `torchrun` sets them, name other processes that train the same model."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1
