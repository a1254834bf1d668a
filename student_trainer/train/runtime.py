"""Where and with whom a run computes, as one value."""

from __future__ import annotations

import dataclasses

import torch

from shared.tracing import Tracer
from shared.training.stop import StopSignals
from shared.training.torch_ranks import ALONE, Ranks
from student_trainer.train.config import RuntimeConfig
from student_trainer.train.optim import Precision


@dataclasses.dataclass(frozen=True, eq=False)
class Runtime:
    """What every step of one run computes with.

    Attributes:
        device: of this rank.
        precision: autocast, loss scaling and TF32; the scaler is the run's own.
        ranks: who trains together.
        stop: the signals that end the run between two steps.
        tracer: of its steps; none: they are not traced.
    """

    device: torch.device
    precision: Precision
    ranks: Ranks
    stop: StopSignals
    tracer: Tracer | None = None

    @classmethod
    def of(
        cls,
        config: RuntimeConfig,
        device: torch.device,
        ranks: Ranks = ALONE,
        stop: StopSignals | None = None,
        tracer: Tracer | None = None,
    ) -> Runtime:
        """With the arithmetic that the settings ask for; without `stop`, nothing but an error ends the run."""
        return cls(device, Precision(config, device), ranks, stop or StopSignals(), tracer)
