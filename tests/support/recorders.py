"""What stands in for CUDA graphs where there is no CUDA."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from student_trainer.train.cuda_graphs import Body, StepGraphs
from student_trainer.train.feed import Feed
from student_trainer.train.session import Session


class Repeating:
    """Makes all operations again whenever a recording is repeated.

    Attributes:
        recorded: how often something was.
        optimizer: whose learning rate is on the device in a recording.
    """

    def __init__(self) -> None:
        self.recorded = 0
        self.optimizer: torch.optim.Optimizer | None = None

    def run(self, body: Body) -> Tensor:
        """See `graphs.Recorder`."""
        return body()

    def record(self, body: Body) -> tuple[Callable[[], None], Tensor]:
        """See `graphs.Recorder`; runs them, too."""
        self.recorded += 1
        result = body()
        assert self.optimizer is not None
        (group,) = self.optimizer.param_groups
        rate = group["lr"]

        def repeat() -> None:
            outside, group["lr"] = group["lr"], rate
            result.copy_(body())
            group["lr"] = outside

        return repeat, result


class Kept(Repeating):
    """Repeats nothing: the result stays that of the recording, so that what a repetition costs the host is seen."""

    def record(self, body: Body) -> tuple[Callable[[], None], Tensor]:
        """See `graphs.Recorder`."""
        self.recorded += 1
        return lambda: None, body()


def record_steps(session: Session, recorder: Repeating, is_demanded: bool = False) -> StepGraphs:
    """Lets a session on a CPU make its steps as one on an accelerator does."""
    feed: Feed = session.feed
    feed._rounds = feed.embeds_all = True
    trainer = session.trainer
    recorder.optimizer = trainer.optimizer
    trainer.graphs = StepGraphs(
        session.model, trainer.head, trainer.optimizer, trainer._objective, session.runtime,
        session.settings.optim.clip_norm, is_demanded, recorder,
    )  # fmt: skip
    return trainer.graphs
