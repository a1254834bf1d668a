"""Settings of the teacher's jobs, one schema a job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from shared.address import Address, ServerText
from shared.channel import ChannelConfig
from shared.config import Section


def _check_address(text: str) -> str:
    Address.parse(text)
    return text


def _off_or_address(value: Any) -> Any:
    return value if value == "off" or not isinstance(value, str) else _check_address(value)


def _switch_or_address(value: Any) -> Any:
    if isinstance(value, bool):  # YAML
        return "on" if value else "off"
    return value if value == "on" else _off_or_address(value)


def _split_tokens(value: Any) -> Any:
    """1,2,3 as a command line and YAML give it: text, or one number."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")] if value.strip() else []
        if not all(part.isascii() and part.isdecimal() for part in parts):
            raise ValueError("expected tokens separated by commas, for example 1,2,3")
        return [int(part) for part in parts]
    return [value] if isinstance(value, int) else value


def _split_numbers(value: Any) -> Any:
    """LAT,LNG as a command line gives it."""
    return value.split(",") if isinstance(value, str) and "," in value else value


NUMBER_BYTES = 4
"""Tokens and lengths of a request are int32: a window has block - 1 tokens at most, and two lengths."""
ENVELOPE_BYTES = 1024
"""More than the other fields of a request and its place in a stream's message need."""

AddressText = Annotated[str, pydantic.AfterValidator(_check_address)]
Tokens = Annotated[tuple[Annotated[int, pydantic.Field(ge=0, lt=2**31)], ...], pydantic.BeforeValidator(_split_tokens)]


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


class ExportConfig(Section):
    """`export`: an upstream LM-TAD checkpoint becomes a teacher file."""

    checkpoint: Path
    """The upstream file: a training checkpoint, a weights-only export or a bare state_dict."""
    out: Path
    """The teacher file to write."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    n_head: int | None = pydantic.Field(None, gt=0)
    """Attention heads a block; needed only if the checkpoint has no model_config."""
    grid_rows: int | None = pydantic.Field(None, gt=0)
    """Rows of the grid, south to north; needed only if the checkpoint has no dataset_config."""
    grid_cols: int | None = pydantic.Field(None, gt=0)
    """Columns of the grid, west to east; needed only if the checkpoint has no dataset_config."""
    cell_size: Annotated[float | tuple[float, float] | None, pydantic.BeforeValidator(_split_numbers)] = None
    """Size of a cell, degrees: one number, or [latitude, longitude]."""
    bounds: tuple[float, float, float, float] | None = None
    """South, west, north, east bounds of the grid, degrees."""
    centroid: Literal["vertex_mean", "line"] = "vertex_mean"
    """Which point of a road the teacher's tokens were made from: the plain mean of its vertices (what public
    converters use) or the length-weighted centroid of its line."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ExportConfig:
        if (self.grid_rows is None) != (self.grid_cols is None):
            raise ValueError("grid_rows and grid_cols go together: give both or neither")
        if (self.cell_size is None) != (self.bounds is None):
            raise ValueError("cell_size and bounds go together: give both or neither")
        sizes = self.cell_size if isinstance(self.cell_size, tuple) else (self.cell_size,)
        if any(size is not None and size <= 0 for size in sizes):
            raise ValueError("cell_size must be positive")
        return self

    @property
    def cell_sizes(self) -> tuple[float, float] | None:
        """Height and width of a cell, degrees."""
        if self.cell_size is None or isinstance(self.cell_size, tuple):
            return self.cell_size
        return self.cell_size, self.cell_size


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

    @pydantic.model_validator(mode="after")
    def _check(self) -> InfoConfig:
        if (self.teacher is None) == (self.address is None):
            raise ValueError("give either --teacher FILE or --address HOST:PORT")
        return self


class PretrainConfig(Section):
    """`pretrain`: an LM-TAD is trained on the trips of a store."""

    data: Path
    """The store that `student-trainer prepare` wrote."""
    out: Path
    """The teacher file to write."""
    overwrite: bool = False
    """Replace `out` if it exists."""
    seed: int = 0
    """Seed of weights, order, crops and dropout; with the same threads it repeats a run bit for bit on the CPU."""
    device: str = pydantic.Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (the first accelerator, otherwise the CPU), cpu, cuda or cuda:N."""
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = "auto"
    """Autocast of the forward pass on an accelerator; auto: bfloat16 where it is native, otherwise float16. The
    CPU computes in float32."""
    threads: int = pydantic.Field(0, ge=0)
    """Threads on the CPU; 0: one a core."""

    n_layer: int = pydantic.Field(4, gt=0)
    """Transformer blocks."""
    n_head: int = pydantic.Field(4, gt=0)
    """Attention heads a block."""
    n_embd: int = pydantic.Field(128, gt=0)
    """Width of the residual stream."""
    bias: bool = False
    """Whether linear layers and layer norms have biases."""
    block_size: int | None = pydantic.Field(None, ge=8)
    """Longest sequence with SOT, tokens; none: the longest trip with SOT and EOT, at most `max_block_size`."""
    max_block_size: int = pydantic.Field(256, ge=8)
    """Bound of the block size where it comes from the data."""
    dropout: float = pydantic.Field(0.1, ge=0, lt=1)
    """Dropout of embeddings, attention and residuals while training."""

    epochs: int = pydantic.Field(10, gt=0)
    """Passes over the training trips."""
    max_steps: int | None = pydantic.Field(None, gt=0)
    """Stop after this many optimiser steps; none: after the epochs. The schedule ends with the run."""
    batch_tokens: int = pydantic.Field(2048, gt=0)
    """Padded tokens of a batch; a batch holds trips of similar length."""
    crop_probability: float = pydantic.Field(0.5, ge=0, le=1)
    """Share of the training sequences that start at a uniformly drawn place of the trip instead of its origin.
    Trainers ask for windows, SOT + the last few tokens, which a teacher of whole trips has never seen."""
    learning_rate: float = pydantic.Field(1e-3, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = pydantic.Field(1e-4, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = pydantic.Field(100, ge=0)
    """Steps of linear warm-up."""
    weight_decay: float = pydantic.Field(0.1, ge=0)
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: float = pydantic.Field(0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = pydantic.Field(0.95, ge=0, lt=1)
    """Decay of the second moment."""
    grad_clip: float = pydantic.Field(1.0, gt=0)
    """Largest norm of the gradient."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> PretrainConfig:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not a multiple of n_head {self.n_head}")
        return self


class BatchingConfig(Section):
    """What may wait for the model, and what it computes at once."""

    batch_ms: float = pydantic.Field(200.0, gt=0)
    """Milliseconds that a batch should take at most while one caller has the teacher for itself."""
    slice_ms: float = pydantic.Field(10.0, gt=0)
    """The same while several callers have asked within the last second: the shorter, the less a small request waits
    for the rows of others, and the less a batch shares."""
    max_batch_tokens: int = pydantic.Field(32768, gt=0)
    """Padded tokens of a batch, whatever its time; bounds the model's memory."""
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


class CacheConfig(Section):
    """What the teacher remembers: it is frozen, so an answer holds for ever."""

    mib: int = pydantic.Field(256, ge=0)
    """Memory for answers, MiB: about 100 bytes for a position with a window of up to 8. 0: nothing is remembered,
    and only rows in flight are shared. Changes no answer."""
    file: Path | None = None
    """Written when the daemon drains and read when it starts, so that a restarted teacher is warm; ignored if it is
    of other weights or another device. none: not kept."""


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


class ServeConfig(Section):
    """`serve`: the daemon."""

    teacher: Path
    """The teacher file."""
    listen: AddressText = "127.0.0.1:50051"
    """HOST:PORT or unix:PATH; port 0: the system chooses."""
    metrics_listen: Annotated[str, pydantic.BeforeValidator(_off_or_address)] = "127.0.0.1:9464"
    """HOST:PORT of the Prometheus metrics over HTTP, or off."""
    reflection: Annotated[str, pydantic.BeforeValidator(_switch_or_address)] = "on"
    """gRPC reflection, which tells any caller the methods: on, off, or HOST:PORT or unix:PATH of a listener of its
    own, unencrypted."""
    insecure: bool = False
    """Listen beyond this machine without encryption, on a network where everybody is trusted."""
    tls: TlsConfig = TlsConfig()
    tokens: Path | None = None
    """File of bearer tokens, one a line: callers must send one of them. Read again when it changes; without it the
    environment's TEACHER_TOKEN holds them, separated by blanks, and if that is not set callers need none."""
    engine: EngineConfig = EngineConfig()
    batching: BatchingConfig = BatchingConfig()
    cache: CacheConfig = CacheConfig()
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

    def of_teacher(self, block_size: int) -> ServeConfig:
        """These settings for a teacher with this block: no message is larger than the largest request that is valid."""
        batching = self.batching
        numbers = batching.max_request_positions * (block_size + 1) + batching.max_request_candidates
        needed = NUMBER_BYTES * numbers + ENVELOPE_BYTES
        return self.model_copy(update={"max_message_bytes": min(self.max_message_bytes, needed)})


class QueryConfig(Section):
    """`query`: one question to a running server."""

    address: ServerText
    """HOST:PORT or unix:PATH of the server."""
    history: Tokens = ()
    """Cell tokens so far, oldest first, separated by commas; empty: SOT alone."""
    candidates: Tokens
    """Cell tokens to compare, separated by commas."""
    candidate_mass: bool = False
    """Also ask for the teacher's total probability of the candidates, among all tokens."""
    channel: ChannelConfig = ChannelConfig()
    """How to reach it."""
    timeout: float = pydantic.Field(10.0, gt=0)
    """Seconds to wait for the answer."""

    @pydantic.field_validator("candidates")
    @classmethod
    def _at_least_one(cls, tokens: tuple[int, ...]) -> tuple[int, ...]:
        if not tokens:
            raise ValueError("give at least one token")
        return tokens
