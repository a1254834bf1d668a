"""Settings of the distillation term and of the connection to the teacher."""

from __future__ import annotations

from typing import Literal

import pydantic

from shared.channel import ChannelConfig
from shared.config import Section

Collisions = Literal["marginal", "duplicate"]
"""How candidates that share a teacher cell are compared: as one cell, or each with the whole mass."""


OnFailure = Literal["wait", "skip", "abort"]
"""What a run does whose teacher does not answer."""

NAME_LENGTH = 64
"""Characters of a caller's name that a teacher takes."""


class DistillConfig(Section):
    """What the student learns from the teacher, and from trips sampled from it; docs/method.md has the formulas."""

    weight: float = pydantic.Field(1.0, ge=0)
    """lambda, of KL(target || student). 0 beside head 0 trains without a teacher."""
    sampled_weight: float | None = pydantic.Field(None, ge=0)
    """The same at positions of sampled trips; none: as `weight`."""
    target: Literal["history", "destination"] = "destination"
    """What the student is pulled to: the teacher's answer, which does not know the destination (history), or that
    answer corrected by a few coefficients, which are fitted on the validation trips at the start (destination)."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """How `weight` goes to 0 over the first `schedule_share` of the run; constant: it does not."""
    schedule_share: float = pydantic.Field(1.0, gt=0, le=1)
    """cosine and linear: share of the optimizer steps after which the weight is 0."""
    head: float = pydantic.Field(1.0, ge=0)
    """Weight of KL(teacher || a destination-free head), which is trained beside the student and then thrown away."""
    time_factor: float = pydantic.Field(1.25, ge=0)
    """Travel times count so many times `optim.time_weight` where a teacher teaches, whose losses take a share of what
    both learn in the trunk."""
    sampled_labels: float = pydantic.Field(0.0, ge=0)
    """Weight of a sampled trip's next road, given the trip's own end as destination, beside a real one's; 0: none."""
    temperature: float = pydantic.Field(1.0, gt=0)
    """tau, for both sides."""
    tau_squared: bool = False
    """Multiply the KL by tau^2, which keeps gradients comparable across temperatures."""
    window: int = pydantic.Field(4, ge=0)
    """Cells of history that the teacher sees after SOT; 0 for the whole trip so far (history: sequence only)."""
    history: Literal["sequence", "window"] = "sequence"
    """Send each trip once and let the teacher cut its windows (sequence), or send every window; same answers."""
    collisions: Collisions = "marginal"
    """Compare distinct cells (marginal), or give each candidate its cell's whole mass (duplicate)."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> DistillConfig:
        if self.history == "window" and self.window == 0:
            raise ValueError("window 0 (the whole history) needs history=sequence")
        return self

    @property
    def weights(self) -> tuple[float, float]:
        """Of KL(target || student), at positions of labelled and of sampled trips."""
        return self.weight, self.weight if self.sampled_weight is None else self.sampled_weight

    @property
    def pulls(self) -> bool:
        """Whether the student itself is pulled to the target, in labelled or in sampled trips."""
        return max(self.weights) > 0

    @property
    def asks(self) -> bool:
        """Whether any term needs the teacher's answers."""
        return self.pulls or self.head > 0


class ClientConfig(Section):
    """How the trainer talks to the teacher."""

    transport: Literal["stream", "unary"] = "stream"
    """Bidirectional streams, or one call a request (unary): for proxies that balance or time calls, not requests, so
    that a stream would stay with one teacher or be cut off."""
    streams: int = pydantic.Field(0, ge=0, le=64)
    """Streams to each address of a list, or shards into which the histories for a name are cut, each with a stream of
    its own; 0: 1 to an address, 16 to a name."""
    name: str = pydantic.Field("", pattern=r"^[ -~]*$", max_length=NAME_LENGTH)
    """What the teacher knows this trainer by; it shares its time evenly among names. Empty: made from the host's.
    Several ranks add theirs."""
    channel: ChannelConfig = ChannelConfig()
    """Encryption and proof of identity."""
    lookahead: int = pydantic.Field(4, ge=1)
    """Optimizer steps whose requests are sent ahead of the student."""
    max_in_flight: int = pydantic.Field(64, ge=1, le=500)
    """Requests under way at once, before they are cut for several teachers; beyond some thousands gRPC cancels
    calls."""
    connect_seconds: float = pydantic.Field(60, gt=0)
    """How long to wait for a teacher at the start; one of several is enough."""
    deadline_seconds: float = pydantic.Field(60, gt=0)
    """How long one attempt may take, from when it may be sent."""
    keepalive_seconds: float = pydantic.Field(30, ge=6)
    """After so many seconds without a byte from the teacher its connection is tested, and closed if nothing comes back
    within a third of that; teachers refuse callers that test more often than every 5 s."""
    on_failure: OnFailure = "wait"
    """What to do when the teacher fails, is away or answers nonsense. wait: try again until it answers; the run ends
    with the same weights. skip: train the affected micro-batches without the distillation term, and count them.
    abort: stop after a few failed attempts. A run that stops leaves a checkpoint to go on from with --resume."""
    retry_seconds: float = pydantic.Field(300, ge=0)
    """wait and abort: how long a request is tried again, with growing pauses, before the run stops; 0: for ever."""
    attempts: int = pydantic.Field(3, ge=1)
    """abort: attempts at a request that may fail before the run stops.
    A full queue fails none, it asks for patience."""
    skip_after_seconds: float = pydantic.Field(10, gt=0)
    """skip: how long a request is tried before its micro-batch is trained without it."""
    max_skipped_share: float = pydantic.Field(0.05, ge=0, le=1)
    """skip: share of all positions of the run that may be trained without the teacher before the run stops."""

    @property
    def patience_seconds(self) -> float:
        """How long a request may be tried in the end, seconds; 0: for ever."""
        return self.skip_after_seconds if self.on_failure == "skip" else self.retry_seconds
