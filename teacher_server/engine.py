"""The frozen teacher: prepared requests -> candidate log-probabilities. The scorer of `scorer.py`.

    works -> contexts by bucket -> distinct and new ones -> tiles -> model -> hidden states at the scored places
          -> dot with the candidates' rows of the head -> log-softmax over each position's candidates

The full-vocabulary softmax is never computed unless its normaliser is asked for: renormalised over the
candidates it cancels.

Everything that touches floating point runs in shapes that depend on the settings alone (tiles of one shape
a bucket, chunks of one length), filled up with padding, and every row is computed independently of the
others: so an answer has the same bits whatever it shares a batch with. Padding is on the right, which
causal attention cannot see.

Shapes: S scored positions with candidates, K candidates, D width, T padded length of a bucket.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged, teacher_file
from shared.errors import ConfigError, InternalError
from shared.teacher_file import TeacherHeader
from shared.wire import ScoreQuery
from teacher_server import contexts, model
from teacher_server.cache import StateCache, distinct_rows
from teacher_server.config import EngineConfig
from teacher_server.contexts import Buckets, Int32, Int64, Plan
from teacher_server.model import LMTAD
from teacher_server.scorer import Scores
from teacher_server.softmax import distinct_log_sum, log_softmax

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
T = TypeVar("T")

CPU_TILE_TOKENS = 512
ACCELERATOR_TILE_TOKENS = 16384
NORMALISER_VALUES = 1 << 22
"""Logits of one chunk of the full-vocabulary normaliser."""
VECTOR_WIDTH = 8
"""Rows of other widths start unaligned, and processors compute unaligned values in another order."""


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """A prepared request.

    Attributes:
        plan: its contexts and scored positions.
        candidates: int32 [K], position after position.
        candidate_lengths: int64 [S], all above 0.
        positions: scored positions of the request, also those without candidates.
        with_mass: whether the candidates' total probability is wanted.
        cost: padded tokens of the contexts.
    """

    plan: Plan
    candidates: Int32
    candidate_lengths: Int64
    positions: int
    with_mass: bool
    cost: int


@dataclasses.dataclass(frozen=True, eq=False)
class _Group:
    """Contexts of one bucket, n of them, and s places that are scored in them.

    Attributes:
        contexts: int32 [n, T], distinct and right-padded.
        tile_rows: contexts in a tile of this bucket.
        row: int64 [s], context of each place.
        place: int64 [s], where in its context.
        is_end: bool [s], whether it is the context's last token.
        slot: int64 [s], which of the S scored positions it is.
    """

    contexts: Int32
    tile_rows: int
    row: Int64
    place: Int64
    is_end: npt.NDArray[np.bool_]
    slot: Int64


@dataclasses.dataclass(frozen=True, eq=False)
class _Tile:
    """Contexts in one of the fixed shapes.

    Attributes:
        tokens: int32 [rows, T].
        index: int64 [s], where the scored states are among the rows * T.
        slots: int64 [s], which of the S scored positions they belong to.
    """

    tokens: Tensor
    index: Tensor
    slots: Tensor


class Engine:
    """A frozen LM-TAD on its device; implements `Scorer[Work]`.

    On the CPU every tile is computed by one thread and several tiles at once: torch's own threads would
    split a tile, which is slower for small ones and makes a row's last bits depend on its place in it.
    """

    def __init__(self, header: TeacherHeader, network: LMTAD, settings: EngineConfig) -> None:
        """Moves the model to its device and dtype.

        Raises:
            ConfigError: the device does not exist here.
        """
        self._device = find_device(settings.device)
        self._pool: ThreadPoolExecutor | None = None
        if self._device.type == "cpu":
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(settings.threads or os.cpu_count(), "tile")
        dtype = find_dtype(settings.dtype, self._device)
        self._model = network.to(self._device, dtype).eval().requires_grad_(False)
        self._block_size = network.architecture.block_size
        default = CPU_TILE_TOKENS if self._device.type == "cpu" else ACCELERATOR_TILE_TOKENS
        self._chunk = settings.tile_tokens or default
        self._buckets = Buckets.make(
            self._block_size, settings.smallest_bucket, settings.buckets_per_doubling, self._chunk
        )
        if network.architecture.n_embd % VECTOR_WIDTH:
            log.warning(
                "n_embd %d is no multiple of %d: the last bits of an answer may depend on its batch",
                network.architecture.n_embd, VECTOR_WIDTH,
            )  # fmt: skip
        self.cache: StateCache | None = None
        if settings.cache_mib:
            width = min(1 + settings.cache_window, self._block_size)
            size = settings.cache_mib * 2**20
            self.cache = StateCache(size, width, network.architecture.n_embd, dtype, self._device)
        self._pad = header.tokeniser.vocabulary.pad
        self._head: Tensor = network.lm_head.weight.detach()
        self.header = header
        self.device = str(self._device)
        self.compute_dtype = str(dtype).removeprefix("torch.")
        self.parameters = sum(parameter.numel() for parameter in network.parameters())

    def check(self, query: ScoreQuery, max_positions: int) -> None:
        """See `contexts.check`."""
        contexts.check(query, self.header.tokeniser.vocabulary, self._block_size, max_positions)

    def prepare(self, query: ScoreQuery) -> Work:
        """The work of a checked request."""
        plan = contexts.plan(query, self.header.tokeniser.vocabulary.sot, self._block_size)
        return Work(
            plan=plan,
            candidates=query.candidate_tokens,
            candidate_lengths=query.candidate_lengths[plan.position].astype(np.int64),
            positions=query.positions,
            with_mass=query.include_candidate_mass,
            cost=self._buckets.cost(plan),
        )

    @torch.inference_mode()
    def score(self, works: Sequence[Work]) -> list[Scores]:
        """Scores the works, one answer each, in their order.

        Raises:
            InternalError: the model gave a value that is not finite.
        """
        if not works:
            return []
        hidden = self._hidden(_merge([work.plan for work in works]))
        lengths = np.concatenate([work.candidate_lengths for work in works])
        candidates = np.concatenate([work.candidates for work in works])
        logits = self._candidate_logits(hidden, candidates, lengths)
        if not bool(np.all(np.isfinite(logits))):
            raise InternalError(
                f"the teacher's logits are not finite in {self.compute_dtype}; try engine.dtype=float32"
            )
        log_probs = log_softmax(logits, lengths)
        masses = self._masses(works, hidden, logits, candidates, lengths)
        ends = ragged.offsets(np.array([len(work.candidates) for work in works])).tolist()
        return [Scores(log_probs[start:end], mass) for start, end, mass in zip(ends, ends[1:], masses, strict=False)]

    def warm_up(self) -> None:
        """Runs every shape once."""
        with torch.inference_mode():
            for width, rows in zip(self._buckets.widths.tolist(), self._buckets.rows.tolist(), strict=True):
                self._model.hidden(torch.zeros(rows, width, dtype=torch.int32, device=self._device))
            hidden = torch.zeros(1, self._head.shape[1], device=self._device)
            self._candidate_logits(hidden, np.zeros(1, np.int32), np.ones(1, np.int64))
            self._log_normalisers(hidden)

    def _hidden(self, plan: Plan) -> Tensor:
        """Final hidden states at the scored places: float32 [S, D]."""
        hidden = torch.empty(len(plan.position), self._head.shape[1], device=self._device)
        bucket = self._buckets.of(plan.lengths)
        groups = [self._recall(self._group(plan, bucket, b), hidden) for b in np.unique(bucket).tolist()]

        def run(tile: _Tile) -> None:
            states = self._model.hidden(tile.tokens).flatten(0, 1)
            hidden[tile.slots] = states[tile.index].float()

        self._each(run, [tile for group in groups for tile in self._tiles(group)])
        for group in groups:
            self._remember(group, hidden)
        return hidden

    def _group(self, plan: Plan, bucket: Int64, b: int) -> _Group:
        """The distinct contexts of one bucket."""
        rows = np.flatnonzero(bucket == b)
        lengths = plan.lengths[rows]
        tokens = plan.tokens[ragged.slices(ragged.offsets(plan.lengths)[rows], lengths)]
        contexts, inverse = distinct_rows(ragged.pad(tokens, lengths, int(self._buckets.widths[b]), self._pad))
        slot = np.flatnonzero(bucket[plan.scored_row] == b)
        place = plan.scored_place[slot]
        return _Group(
            contexts=contexts,
            tile_rows=int(self._buckets.rows[b]),
            row=inverse[np.searchsorted(rows, plan.scored_row[slot])],
            place=place,
            is_end=place == plan.lengths[plan.scored_row[slot]] - 1,
            slot=slot,
        )

    def _recall(self, group: _Group, hidden: Tensor) -> _Group:
        """Writes the remembered states into `hidden`; returns what is left to compute."""
        if self.cache is None or group.contexts.shape[1] > self.cache.width:
            return group
        found = self.cache.find(group.contexts)
        found[group.row[~group.is_end]] = -1  # only the state at a context's end is remembered
        hit = found[group.row] >= 0
        hidden[self._to_device(group.slot[hit])] = self.cache.states(found[group.row[hit]]).float()
        missing = np.flatnonzero(found < 0)
        return dataclasses.replace(
            group,
            contexts=group.contexts[missing],
            row=np.searchsorted(missing, group.row[~hit]),
            place=group.place[~hit],
            is_end=group.is_end[~hit],
            slot=group.slot[~hit],
        )

    def _remember(self, group: _Group, hidden: Tensor) -> None:
        if self.cache is None or group.contexts.shape[1] > self.cache.width:
            return
        ends = np.flatnonzero(group.is_end)
        rows, first = np.unique(group.row[ends], return_index=True)
        self.cache.put(group.contexts[rows], hidden[self._to_device(group.slot[ends[first]])])

    def _tiles(self, group: _Group) -> list[_Tile]:
        """The contexts of a group, filled up to whole tiles."""
        (n, width), tile_rows = group.contexts.shape, group.tile_rows
        count = -(-n // tile_rows)
        if not count:
            return []
        filled = np.full((count * tile_rows, width), self._pad, np.int32)
        filled[:n] = group.contexts
        order = np.argsort(group.row, kind="stable")
        index = (group.row % tile_rows * width + group.place)[order]
        ends = np.searchsorted(group.row[order], tile_rows * np.arange(1, count)).tolist()
        parts = (
            self._to_device(filled).view(count, tile_rows, width).unbind(),
            self._to_device(index).tensor_split(ends),
            self._to_device(group.slot[order]).tensor_split(ends),
        )
        return [_Tile(*part) for part in zip(*parts, strict=True)]

    def _each(self, function: Callable[[T], None], parts: Sequence[T]) -> None:
        """Calls the function on every part: at once on the CPU's threads, one after another on an accelerator."""

        @torch.inference_mode()
        def call(part: T) -> None:
            function(part)

        for _ in (map if self._pool is None else self._pool.map)(call, parts):
            pass

    def _to_device(self, array: npt.NDArray) -> Tensor:
        return torch.from_numpy(array).to(self._device)

    def _candidate_logits(self, hidden: Tensor, candidates: Int32, lengths: Int64) -> Float32:
        """Logit of each candidate, float32 [K]: products and sums in float32, in chunks of one length."""
        count, chunk = len(candidates), self._chunk
        padded = -(-count // chunk) * chunk
        pairs = np.zeros((2, padded), np.int64)
        pairs[:, :count] = ragged.rows(lengths), candidates
        position, token = self._to_device(pairs)
        logits = torch.empty(padded, device=self._device)

        def run(start: int) -> None:
            part = slice(start, start + chunk)
            logits[part] = (hidden[position[part]] * self._head[token[part]].float()).sum(-1)

        self._each(run, range(0, padded, chunk))
        return cast(Float32, logits[:count].cpu().numpy())

    def _log_normalisers(self, hidden: Tensor) -> npt.NDArray[np.float64]:
        """Log of the full vocabulary's sum of exponentials: [n, D] -> float64 [n]."""
        head = self._head.float().T
        chunk = max(1, NORMALISER_VALUES // head.shape[1])
        padded = hidden.new_zeros(-(-len(hidden) // chunk) * chunk, len(head))
        padded[: len(hidden)] = hidden
        sums = torch.empty(len(padded), device=self._device)

        def run(start: int) -> None:
            part = slice(start, start + chunk)
            sums[part] = torch.logsumexp(padded[part] @ head, -1)

        self._each(run, range(0, len(padded), chunk))
        return sums[: len(hidden)].double().cpu().numpy()

    def _masses(
        self, works: Sequence[Work], hidden: Tensor, logits: Float32, candidates: Int32, lengths: Int64
    ) -> list[npt.NDArray[np.float16] | None]:
        """Total probability of each position's distinct candidate cells, for the works that want it."""
        scored = np.array([len(work.plan.position) for work in works])
        wanted = np.repeat([work.with_mass for work in works], scored)
        mass = np.zeros(len(lengths), np.float64)
        if wanted.any():
            log_mass = distinct_log_sum(logits, candidates, lengths)[wanted]
            normaliser = self._log_normalisers(hidden[self._to_device(wanted)])
            mass[wanted] = np.exp(np.minimum(log_mass - normaliser, 0.0))
        result: list[npt.NDArray[np.float16] | None] = []
        for work, start in zip(works, ragged.offsets(scored)[:-1].tolist(), strict=True):
            every = np.zeros(work.positions, np.float16)
            every[work.plan.position] = mass[start : start + len(work.plan.position)]
            result.append(every if work.with_mass else None)
        return result


def load(path: Path, settings: EngineConfig) -> Engine:
    """The engine of a teacher file.

    Raises:
        FileFormatError: the file is damaged or inconsistent.
        ConfigError: the device does not exist here.
    """
    header, weights = teacher_file.read(path)
    return Engine(header, model.load(header, weights), settings)


def find_device(name: str) -> torch.device:
    """The device of a setting; raises `ConfigError` if there is none such."""
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if available else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= available:
        raise ConfigError(f"device={name}, but torch sees {available} CUDA devices here; use device=cpu or auto")
    return device


def find_dtype(name: str, device: torch.device) -> torch.dtype:
    """Weights and arithmetic on a device."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    if device.type == "cpu" and name != "float32":
        log.warning("dtype=%s on the CPU is many times slower than float32", name)
    return {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def _merge(plans: Sequence[Plan]) -> Plan:
    """Several plans as one; positions are numbered through."""
    first_row = ragged.offsets(np.array([len(plan.lengths) for plan in plans]))
    scored_row = [plan.scored_row + first for plan, first in zip(plans, first_row[:-1], strict=True)]
    return Plan(
        tokens=np.concatenate([plan.tokens for plan in plans]),
        lengths=np.concatenate([plan.lengths for plan in plans]),
        scored_row=np.concatenate(scored_row),
        scored_place=np.concatenate([plan.scored_place for plan in plans]),
        position=np.arange(sum(len(plan.position) for plan in plans)),
    )
