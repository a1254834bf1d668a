"""Settings of `serve`, whose parts the rooms define."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pydantic

from shared import log
from shared.config import Section
from shared.tracing import TracingConfig
from teacher_server.address import Address, AddressText, check_address
from teacher_server.answers.config import CacheConfig
from teacher_server.batching.config import BatchingConfig
from teacher_server.engine.config import EngineConfig


def _off_or_address(value: Any) -> Any:
    return value if value == "off" or not isinstance(value, str) else check_address(value)


def _check_mode(text: Any) -> Any:
    """As text: YAML reads 0660 as the number 432, and 660 as the number 660."""
    if not isinstance(text, str) or not re.fullmatch(r"0?[0-7]{3}", text):
        raise ValueError("expected three octal digits as text, such as 660 (in a YAML file: '660')")
    return text


FileMode = Annotated[str, pydantic.BeforeValidator(_check_mode)]
"""Permissions of a file, octal."""
NUMBER_BYTES = 4
"""Tokens and lengths of a request are int32: a window has block - 1 tokens at most, and two lengths."""
MOST_AGE_SECONDS = 5 * 86_400.0
"""gRPC counts milliseconds in 32 bits, twice an age and its grace together."""
ENVELOPE_BYTES = 1024
"""More than the other fields of a request and its place in a stream's message need."""


class TlsConfig(Section):
    """Encryption, and who may call: PEM files, read again when they change, for connections that come later."""

    certificate: Path | None = None
    """The teacher's certificate, followed by those that lead to a certificate authority; none: not encrypted."""
    key: Path | None = None
    """Its private key, unencrypted."""
    client_ca: Path | None = None
    """Certificate authorities: every caller must show a certificate that one of them has signed; none: any caller."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> TlsConfig:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together: give both or neither")
        if self.client_ca is not None and self.certificate is None:
            raise ValueError("client_ca needs the teacher's own certificate and key")
        return self


class LogConfig(Section):
    """What is written on stderr."""

    format: log.Format = "text"
    """text for people, json for machines; --log-format says it for any command."""
    access: bool = False
    """A line for each request, the refused too: caller, method, code, positions, and times in microseconds."""


class QuotaConfig(Section):
    """What the callers with the tokens of one name may ask, all together."""

    share: float = pydantic.Field(1.0, gt=0)
    """Of the teacher's time while others wait, too, relative to theirs: 2 is twice as much as a caller without."""
    positions_per_second: float = pydantic.Field(0.0, ge=0)
    """Scored positions, remembered ones too; 0: as many as they like. Streams are slowed down to it, and unary calls
    refused with RESOURCE_EXHAUSTED above it."""


class ServeConfig(Section):
    """`serve`: the daemon."""

    teacher: Path
    """The teacher file."""
    listen: AddressText = "127.0.0.1:50051"
    """HOST:PORT or unix:PATH; port 0: the system chooses."""
    socket_mode: FileMode | None = None
    """Who may connect to unix:PATH: the socket's permissions as chmod has them, such as 660 for its owner and group;
    connecting needs w. none: what the umask leaves."""
    metrics_listen: Annotated[str, pydantic.BeforeValidator(_off_or_address)] = "127.0.0.1:9464"
    """HOST:PORT of the Prometheus metrics over HTTP, or off."""
    reflection: bool = True
    """gRPC reflection, which tells any caller the methods."""
    insecure: bool = False
    """Listen beyond this machine without encryption, on a network where everybody is trusted."""
    tls: TlsConfig = TlsConfig()
    tracing: TracingConfig = TracingConfig()
    tokens: Path | None = None
    """File of bearer tokens, one a line, all of them as `name: token` or none: callers must send one of them, and a
    token's name is the caller's. Read again when it changes; without it the environment's TEACHER_TOKEN holds them,
    separated by blanks, and if that is not set callers need none."""
    quotas: dict[str, QuotaConfig] = pydantic.Field(default_factory=dict)
    """By the name of a token, what its callers may ask: quotas.NAME.share and quotas.NAME.positions_per_second."""
    engine: EngineConfig = EngineConfig()
    batching: BatchingConfig = BatchingConfig()
    cache: CacheConfig = CacheConfig()
    log: LogConfig = LogConfig()
    max_connections: int = pydantic.Field(256, gt=0)
    """Connections of callers; gRPC closes those above it. Lowered, with a warning, to what the limit of open files
    (ulimit -n) allows."""
    max_calls: int = pydantic.Field(512, gt=0)
    """Calls of the teacher service that may be open, streams included, all callers together; refused with
    RESOURCE_EXHAUSTED above it, before anything is read."""
    max_message_bytes: int = pydantic.Field(16 * 2**20, ge=1024, lt=2**31)
    """Largest request message; gRPC refuses a larger one with RESOURCE_EXHAUSTED, which ends a stream. Lowered to what
    a request of `batching.max_request_positions` windows of the teacher's block and `batching.max_request_candidates`
    needs."""
    stream_in_flight: int = pydantic.Field(64, gt=0)
    """Requests of one stream under way; no more are read from it before an answer is written, nor while those under
    way have more than `max_message_bytes` together."""
    max_connection_age_seconds: float = pydantic.Field(0.0, ge=0, le=MOST_AGE_SECONDS)
    """After so many seconds, a tenth more or less, a caller is told to make its connection anew and to move its
    streams, so that teachers that came later, behind a name or an address of several, get their share. Nothing is
    lost: what was asked before is answered. 0: connections may live for ever."""
    max_connection_age_grace_seconds: float = pydantic.Field(30.0, gt=0, le=MOST_AGE_SECONDS)
    """How long a stream may take from then to its last answer before it is cut off; it is read for half as long."""
    keepalive_seconds: float = pydantic.Field(60.0, gt=0)
    """After so many seconds without a byte from a caller its connection is tested, and closed, with all that it has
    asked, if nothing comes back within a third of that."""
    drain_seconds: float = pydantic.Field(30.0, gt=0)
    """After SIGTERM or SIGINT, how long accepted requests may take before the daemon gives them up."""
    warm_up: bool = True
    """Compute every shape once before serving, so that the first requests are as fast as the rest."""

    @pydantic.field_validator("metrics_listen")
    @classmethod
    def _metrics_over_tcp(cls, text: str) -> str:
        if text.startswith("unix:"):
            raise ValueError("metrics are served over TCP: expected HOST:PORT or off")
        return text

    @pydantic.model_validator(mode="after")
    def _socket_has_mode(self) -> ServeConfig:
        if self.socket_mode is not None and not Address.parse(self.listen).path:
            raise ValueError("socket_mode is for listen=unix:PATH; a port has no permissions")
        return self

    def of_teacher(self, block_size: int) -> ServeConfig:
        """These settings for a teacher with this block: no message is larger than the largest request that is valid."""
        batching = self.batching
        numbers = batching.max_request_positions * (block_size + 1) + batching.max_request_candidates
        needed = NUMBER_BYTES * numbers + ENVELOPE_BYTES
        return self.model_copy(update={"max_message_bytes": min(self.max_message_bytes, needed)})
