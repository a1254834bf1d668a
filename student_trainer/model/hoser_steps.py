"""What later steps of HOSER read of a step. M steps, C candidates, D = 2d width."""

from __future__ import annotations

import numpy as np
import torch

from student_trainer.model.steps import StepTable

CPU = torch.device("cpu")


class HoserSteps(StepTable):
    """Steps with what later steps of HOSER read of them.

    Attributes:
        minutes: float32 [M] time of day, as `minutes_of_day`.
        candidate: int32 [M, C] candidates whose times are kept, -1 for none; C is 0 where none are.
        standardised: float32 [M, C] these times.
        time_part: float32 [M, 64], the state as the time estimator's first layer has it, on the student's device.
        keys, values: float32 [M, D] of each block, there, too.
    """

    COLUMNS = (*StepTable.COLUMNS, "minutes", "candidate", "standardised", "time_part")
    LISTS = ("keys", "values")

    def __init__(
        self,
        layers: int,
        width: int,
        time_width: int,
        capacity: int = 1024,
        device: torch.device = CPU,
        candidates: int = 0,
    ) -> None:
        super().__init__(capacity)
        self.minutes = np.zeros(capacity, np.float32)
        self.candidate = np.zeros((capacity, candidates), np.int32)
        self.standardised = np.zeros((capacity, candidates), np.float32)
        self.time_part = torch.zeros(capacity, time_width, device=device)
        self.keys = [torch.zeros(capacity, width, device=device) for _ in range(layers)]
        self.values = [torch.zeros(capacity, width, device=device) for _ in range(layers)]
