"""How travel times are standardised."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class TimeScale:
    """Standardisation of log1p seconds, from the training steps: x = z * sigma + mu."""

    mu: float
    sigma: float
