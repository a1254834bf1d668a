"""How travel times are standardised."""

from __future__ import annotations

import dataclasses

import numpy as np

from shared.arrays import Float32


@dataclasses.dataclass(frozen=True)
class TimeScale:
    """Standardisation of log1p seconds, from the training steps: x = z * sigma + mu."""

    mu: float
    sigma: float

    def seconds(self, standardised: Float32) -> Float32:
        """Travel times in seconds, not negative, of what the student's head gives; any shape."""
        return np.asarray(np.expm1(standardised * self.sigma + self.mu).clip(min=0), np.float32)
