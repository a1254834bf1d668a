"""Settings of `info` and `query`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pydantic

from shared.address import ServerText
from shared.channel import ChannelConfig
from shared.config import Section


def _split_tokens(value: Any) -> Any:
    """1,2,3 as a command line and YAML give it: text, or one number."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isascii() and part.isdecimal() for part in parts):
            raise ValueError("expected tokens separated by commas, for example 1,2,3")
        return [int(part) for part in parts]
    return [value] if isinstance(value, int) else value


CellTokens = Annotated[
    tuple[Annotated[int, pydantic.Field(ge=0, lt=2**31)], ...], pydantic.BeforeValidator(_split_tokens)
]
"""Cell tokens, as a list or as text: 1,2,3."""


class InfoConfig(Section):
    """`info`: what a teacher file, or a running server, is."""

    teacher: Path | None = None
    """A teacher file."""
    address: ServerText | None = None
    """HOST:PORT or unix:PATH of a running server."""
    channel: ChannelConfig = ChannelConfig()
    """How to reach it."""
    timeout: float = pydantic.Field(10.0, gt=0)
    """Seconds to wait for the server's answer."""
    wait: float = pydantic.Field(0.0, ge=0)
    """Seconds to wait for a server that is loading its teacher, or that is not there yet."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> InfoConfig:
        if (self.teacher is None) == (self.address is None):
            raise ValueError("give either --teacher FILE or --address HOST:PORT")
        return self


class QueryConfig(Section):
    """`query`: one question to a running server."""

    address: ServerText
    """HOST:PORT or unix:PATH of the server."""
    history: CellTokens = ()
    """Cell tokens so far, oldest first, separated by commas; empty: SOT alone."""
    candidates: CellTokens
    """Tokens to compare, separated by commas: cells, and the end of the trip (see `info`) if wanted."""
    candidate_mass: bool = False
    """Also ask for the teacher's total probability of the candidates, among all tokens."""
    channel: ChannelConfig = ChannelConfig()
    """How to reach it."""
    timeout: float = pydantic.Field(10.0, gt=0)
    """Seconds to wait for the answer."""
    wait: float = pydantic.Field(0.0, ge=0)
    """Seconds to wait for a server that is loading its teacher, or that is not there yet."""

    @pydantic.field_validator("candidates")
    @classmethod
    def _at_least_one(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if not tokens:
            raise ValueError("give at least one token")
        return tokens
