"""Settings of the engine."""

from __future__ import annotations

from typing import Literal

import pydantic

from shared.config import Section


class EngineConfig(Section):
    """How the frozen teacher computes."""

    device: str = pydantic.Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (the first accelerator, otherwise the CPU), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Weights and arithmetic of the forward pass; auto: float16 on an accelerator, float32 on the CPU,
    where half precision is many times slower. Scores are reduced in float32 always."""
    threads: int = pydantic.Field(0, ge=0)
    """Tiles computed at once on the CPU, one core each; 0: one a core."""
    tile_tokens: int = pydantic.Field(0, ge=0)
    """Padded tokens of the largest forward pass; there are passes of a quarter and a sixteenth, too. Such fixed
    shapes are what makes an answer independent of its batch. 0: 512 on the CPU, 16384 on an accelerator. Part of
    the answer's last bits."""
    smallest_bucket: int = pydantic.Field(4, ge=1)
    """Contexts up to this many tokens after SOT are padded to this length."""
    buckets_per_doubling: int = pydantic.Field(2, ge=1, le=8)
    """Padded lengths between one length and its double: with more of them less is padded, but more tiles stay
    partly empty."""
    prefix_window: int = pydantic.Field(8, ge=0)
    """Contexts padded to at most this many tokens after SOT are computed as a tree, each distinct prefix once; 0:
    none. It pays where windows are short. Part of the answer's last bits."""
    allow_batch_dependence: bool = False
    """Serve even where the last bits of an answer depend on what shares its batch, which is found out at the start;
    such answers are not kept in `cache.file`. Otherwise the daemon refuses to start there."""
