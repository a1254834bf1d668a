"""Settings of admission and batching."""

from __future__ import annotations

import pydantic

from shared.config import Section

CPU_BATCH_TOKENS = 32768
ACCELERATOR_BATCH_TOKENS = 131072


class BatchingConfig(Section):
    """What may wait for the model, and what it computes at once."""

    batch_ms: float = pydantic.Field(200.0, gt=0)
    """Milliseconds that a batch should take at most while one caller has the teacher for itself."""
    slice_ms: float = pydantic.Field(10.0, gt=0)
    """The same while several callers have asked within the last second: the shorter, the less a small request waits
    for the rows of others, and the less a batch shares."""
    max_batch_tokens: int = pydantic.Field(0, ge=0)
    """Padded tokens of a batch, whatever its time; bounds the model's memory. 0: 32768 on a CPU, 131072 on an
    accelerator."""
    max_queued_positions: int = pydantic.Field(262144, gt=0)
    """Scored positions that may be unanswered, all callers together. Streams are granted shares of it, and others
    refused with RESOURCE_EXHAUSTED above it; positions that are remembered do not count."""
    max_request_positions: int = pydantic.Field(65536, gt=0)
    """Scored positions of one request."""
    max_queued_candidates: int = pydantic.Field(4 * 2**20, gt=0)
    """Candidates of the unanswered requests, all callers together; refused with RESOURCE_EXHAUSTED above it, also on
    streams. Bounds the memory that requests of few positions with very many candidates can take."""
    max_request_candidates: int = pydantic.Field(2**20, gt=0)
    """Candidates of one request."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> BatchingConfig:
        if self.max_request_positions > self.max_queued_positions:
            raise ValueError("max_request_positions is above max_queued_positions: such a request could never wait")
        if self.max_request_candidates > self.max_queued_candidates:
            raise ValueError("max_request_candidates is above max_queued_candidates: such a request could never wait")
        return self

    def chosen(self, is_accelerated: bool) -> BatchingConfig:
        """These settings with a number for `max_batch_tokens`."""
        tokens = self.max_batch_tokens or (ACCELERATOR_BATCH_TOKENS if is_accelerated else CPU_BATCH_TOKENS)
        return self.model_copy(update={"max_batch_tokens": tokens})
