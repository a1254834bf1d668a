"""The frozen teacher: batches of contexts -> candidate log-probabilities. The scorer of `scorer.py`.

    contexts -> tiles (`tiles.py`) -> model -> states of the distinct scored places -> dot with the candidates'
    rows of the head -> log-softmax over each place's candidates

The full-vocabulary softmax is never computed unless its normaliser is asked for: renormalised over the
candidates it cancels.

Everything that touches floating point runs in shapes of fixed sizes, filled up with padding, and every row is
computed independently of the others. Sizes are used together only if they were seen to give the same bits here, on
this device: so an answer has the same bits whatever it shares a batch with.

Shapes: S scored places, U distinct states, K candidates, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import platform
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import ragged, teacher_file
from shared.errors import InternalError
from shared.teacher_file import TeacherHeader
from shared.wire import ScoreQuery
from teacher_server import checks
from teacher_server.engine import tiler as tiles
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.softmax import distinct_log_sum, log_softmax
from teacher_server.engine.tiler import Buckets, Choice, Group, Kind, Tile, Tiler, Tiling
from teacher_server.lmtad import model
from teacher_server.lmtad.device import find_device, find_dtype
from teacher_server.lmtad.model import LMTAD
from teacher_server.scorer import Batch, Int64, Scores

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
T = TypeVar("T")

CPU_TILE_TOKENS = 512
ACCELERATOR_TILE_TOKENS = 16384
NORMALISER_VALUES = 1 << 22
"""Logits of the largest chunk of the full-vocabulary normaliser."""
_SEED = 0x7EAC


@dataclasses.dataclass(frozen=True, eq=False)
class Ready:
    """An assembled batch.

    Attributes:
        batch: what is asked.
        tiling: its contexts in tiles.
        pairs: int64 [2, K], state and token of each candidate.
    """

    batch: Batch
    tiling: Tiling
    pairs: Int64


@dataclasses.dataclass
class Computed:
    """What an engine has computed since its start.

    Attributes:
        places: scored places.
        states: distinct ones of them, batch by batch.
        contexts: distinct contexts, or prefixes where these are shared.
        tokens: tokens, or nodes where prefixes are shared.
        padded: the same with padding.
    """

    places: int = 0
    states: int = 0
    contexts: int = 0
    tokens: int = 0
    padded: int = 0

    def add(self, tiling: Tiling) -> None:
        """Counts a batch."""
        self.places += len(tiling.state)
        self.states += tiling.states
        self.contexts += tiling.contexts
        self.tokens += tiling.tokens
        self.padded += sum(tile.size * tile.group.unit for tile in tiling.tiles)


class Engine:
    """A frozen LM-TAD on its device; implements `Scorer[Ready]`.

    On the CPU every tile is computed by one thread and several tiles at once: torch's own threads would
    split a tile, which is slower for small ones and makes a row's last bits depend on its place in it.
    """

    def __init__(self, header: TeacherHeader, network: LMTAD, settings: EngineConfig) -> None:
        """Moves the model to its device and dtype, and finds the sizes of tile that give the same bits there.

        Raises:
            ConfigError: the device does not exist here.
        """
        self._device = find_device(settings.device)
        self._pool: ThreadPoolExecutor | None = None
        threads = 1
        if self._device.type == "cpu":
            torch.set_num_threads(1)
            threads = settings.threads or os.cpu_count() or 1
            self._pool = ThreadPoolExecutor(threads, "tile")
        dtype = find_dtype(settings.dtype, self._device)
        self._model = network.to(self._device, dtype).eval().requires_grad_(False)
        self._head: Tensor = network.lm_head.weight.detach()
        self.header = header
        self.device = str(self._device)
        self.compute_dtype = str(dtype).removeprefix("torch.")
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.computed = Computed()
        default = CPU_TILE_TOKENS if self._device.type == "cpu" else ACCELERATOR_TILE_TOKENS
        tile_tokens = settings.tile_tokens or default
        self._buckets = Buckets.make(
            network.architecture.block_size,
            settings.smallest_bucket,
            settings.buckets_per_doubling,
            settings.prefix_window,
        )
        sizes = self._tile_sizes(tile_tokens)
        overhead = tiles.OVERHEAD * tile_tokens
        self._tiler = Tiler(self._buckets, sizes, overhead, threads, header.tokeniser.vocabulary.pad)
        self._chunks = Choice(self._chunk_sizes(tile_tokens, self._logits), overhead)
        rows = max(1, NORMALISER_VALUES // len(self._head))
        self._normaliser_chunks = Choice(self._chunk_sizes(rows, self._log_sums), tiles.OVERHEAD * rows)
        self.numerics = self._digest()

    @property
    def costs(self) -> Int64:
        """Padded tokens of a context by its length with SOT: int64 [block size + 1]."""
        return self._buckets.costs

    def check(self, query: ScoreQuery, max_positions: int, max_candidates: int) -> None:
        """See `checks.check`."""
        vocabulary, block_size = self.header.tokeniser.vocabulary, self._buckets.widths[-1]
        checks.check(query, vocabulary, block_size, max_positions, max_candidates)

    def assemble(self, batch: Batch) -> Ready:
        """Cuts a batch into tiles; any thread."""
        tiling = self._tiler.tile(batch)
        pairs = np.stack([np.repeat(tiling.state, batch.candidate_lengths), batch.candidates])
        return Ready(batch, tiling, pairs)

    @torch.inference_mode()
    def score(self, ready: Ready) -> Scores:
        """Scores an assembled batch; one thread at a time.

        Raises:
            InternalError: the model gave a value that is not finite.
        """
        batch = ready.batch
        states = self._states(ready.tiling)
        logits = self._candidate_logits(states, ready.pairs)
        if not bool(np.all(np.isfinite(logits))):
            raise InternalError(
                f"the teacher's logits are not finite in {self.compute_dtype}; try engine.dtype=float32"
            )
        mass = np.zeros(len(batch.with_mass), np.float16)
        if batch.with_mass.any():
            mass[batch.with_mass] = self._masses(ready, states, logits)
        return Scores(log_softmax(logits, batch.candidate_lengths), mass)

    def warm_up(self) -> None:
        """Runs the whole model once. All its shapes have been run before, to compare them."""
        longest = self._buckets.widths[-1]
        tokens = np.zeros(longest, np.int32)
        one, last = np.ones(1, np.int64), np.full(1, longest - 1)
        self.score(self.assemble(Batch(tokens, last + 1, one - 1, last, tokens[:1], one, one > 0)))

    def _states(self, tiling: Tiling) -> Tensor:
        """Final hidden states of the distinct scored places: float32 [U, D]."""
        states = torch.empty(tiling.states, self._head.shape[1], device=self._device)

        def run(tile: Tile) -> None:
            states[tile.first : tile.first + tile.count] = tile.states(self._model, self._device).float()

        self._each(run, tiling.tiles)
        self.computed.add(tiling)
        return states

    def _each(self, function: Callable[[T], None], parts: Sequence[T]) -> None:
        """Calls the function on every part: at once on the CPU's threads, one after another on an accelerator."""

        @torch.inference_mode()
        def call(part: T) -> None:
            function(part)

        at_once = self._pool is not None and len(parts) > 1
        for _ in (self._pool.map if self._pool is not None and at_once else map)(call, parts):
            pass

    def _in_chunks(
        self, function: Callable[[Tensor, Tensor], Tensor], chunks: Choice, states: Tensor, rows: Int64
    ) -> Float32:
        """A function of states and rows int64 [n, ...] -> [n], in chunks of fixed lengths."""
        lengths = np.array(chunks.cover(len(rows)), np.int64)
        padded = np.zeros((int(lengths.sum()), *rows.shape[1:]), np.int64)
        padded[: len(rows)] = rows
        inputs = torch.from_numpy(padded).to(self._device)
        found = torch.empty(len(padded), device=self._device)

        def run(part: slice) -> None:
            found[part] = function(states, inputs[part])

        ends = ragged.offsets(lengths).tolist()
        self._each(run, [slice(*ends_of) for ends_of in itertools.pairwise(ends)])
        return cast(Float32, found[: len(rows)].cpu().numpy())

    def _logits(self, states: Tensor, pairs: Tensor) -> Tensor:
        """Logits of pairs of state and token: float32 [n], products and sums in float32."""
        return (states[pairs[:, 0]] * self._head[pairs[:, 1]].float()).sum(-1)

    def _log_sums(self, states: Tensor, rows: Tensor) -> Tensor:
        """Log of the full vocabulary's sum of exponentials, of states [n]: float32 [n]."""
        return torch.logsumexp(states[rows] @ self._head.float().T, -1)

    def _candidate_logits(self, states: Tensor, pairs: Int64) -> Float32:
        """Logit of each candidate: float32 [K]."""
        return self._in_chunks(self._logits, self._chunks, states, np.ascontiguousarray(pairs.T))

    def _masses(self, ready: Ready, states: Tensor, logits: Float32) -> npt.NDArray[np.float64]:
        """Total probability of each place's distinct candidate cells, for the places that want it."""
        batch, wanted = ready.batch, ready.batch.with_mass
        of_wanted = np.repeat(wanted, batch.candidate_lengths)
        log_mass = distinct_log_sum(logits[of_wanted], batch.candidates[of_wanted], batch.candidate_lengths[wanted])
        distinct, inverse = np.unique(ready.tiling.state[wanted], return_inverse=True)
        normalisers = self._in_chunks(self._log_sums, self._normaliser_chunks, states, distinct)
        masses: npt.NDArray[np.float64] = np.exp(np.minimum(log_mass - normalisers.astype(np.float64)[inverse], 0.0))
        return masses

    def _tile_sizes(self, tile_tokens: int) -> dict[Group, tuple[int, ...]]:
        """Sizes of tile of every group whose states have the same bits as the largest one's.

        They are compared in as few blocks as have all shapes: one where all blocks are alike, and two for a tree,
        as its last one is not. The last block of `Kind.ENDS` is not, either, but its others are those of
        `Kind.PLACES`.
        """
        blocks = {
            group: min(2 if group.kind is Kind.TREE else 1, self._model.architecture.n_layer)
            for group in self._buckets.groups
        }
        networks = {count: self._model.shallow(count) for count in set(blocks.values())}
        vocabulary = self.header.tokeniser.vocabulary
        sizes: dict[Group, tuple[int, ...]] = {}

        def find(group: Group) -> None:
            random = np.random.default_rng(_SEED)
            candidates = group.sizes(tile_tokens)
            samples = group.samples(candidates[-1])
            tokens = random.integers(vocabulary.size, size=(samples, group.width), dtype=np.int32)

            def run(size: int) -> tuple[Tensor, Int64]:
                tile, which = tiles.sample(group, size, tokens, random)
                return tile.states(networks[blocks[group]], self._device), which

            sizes[group] = _agreeing(f"{group.kind.value} of {group.width} tokens", candidates, run)

        self._each(find, list(blocks))
        for group in blocks:
            if group.kind is Kind.ENDS:
                others = sizes[Group(Kind.PLACES, group.width)]
                sizes[group] = tuple(size for size in sizes[group] if size in others)
        return sizes

    def _chunk_sizes(self, largest: int, function: Callable[[Tensor, Tensor], Tensor]) -> tuple[int, ...]:
        """Lengths of chunk at which `_logits` or `_log_sums` gives the same bits."""
        random = np.random.default_rng(_SEED)
        candidates = tuple(sorted({max(1, largest // 4**i) for i in range(tiles.SIZES)}, reverse=True))
        count = candidates[-1]
        states = torch.from_numpy(random.standard_normal((count, self._head.shape[1]), np.float32)).to(self._device)
        pairs = np.stack([np.arange(count), random.integers(len(self._head), size=count)], 1)
        rows = pairs if function == self._logits else pairs[:, 0]

        @torch.inference_mode()
        def run(size: int) -> tuple[Tensor, Int64]:
            which = random.permutation(np.append(np.arange(count), random.integers(count, size=size - count)))
            return function(states, torch.from_numpy(rows[which]).to(self._device)), which

        return _agreeing("chunks", candidates, run)

    def _digest(self) -> str:
        """All that the last bits of an answer depend on, in 16 hexadecimal digits."""
        is_cpu = self._device.type == "cpu"
        parts = [
            self.header.revision,
            self._device.type,
            _processor() if is_cpu else torch.cuda.get_device_name(self._device),
            torch.backends.cpu.get_cpu_capability(),
            self.compute_dtype,
            torch.__version__,
            np.__version__,
            self._buckets.widths,
            self._buckets.prefix_width,
            sorted((group.kind.value, group.width, sizes) for group, sizes in self._tiler.sizes.items()),
            self._chunks.sizes,
            self._normaliser_chunks.sizes,
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def load(path: Path, settings: EngineConfig) -> Engine:
    """The engine of a teacher file.

    Raises:
        FileFormatError: the file is damaged or inconsistent.
        ConfigError: the device does not exist here.
    """
    header, weights = teacher_file.read(path)
    return Engine(header, model.load(header, weights), settings)


def _agreeing(what: str, sizes: tuple[int, ...], run: Callable[[int], tuple[Tensor, Int64]]) -> tuple[int, ...]:
    """The sizes, largest first, that give every sample the bits that the largest gives it.

    Args:
        what: is computed, for the log.
        sizes: to compare.
        run: a size -> results [n, ...] and, int64 [n], of which sample each is; the largest has all.
    """
    results, which = run(sizes[0])
    reference = results[torch.from_numpy(np.unique(which, return_index=True)[1]).to(results.device)]

    def agrees(results: Tensor, which: Int64) -> bool:
        return torch.equal(results, reference[torch.from_numpy(which).to(results.device)])

    if not agrees(results, which):
        log.warning("%s: the last bits of an answer may depend on its batch on this device", what)
    found = (sizes[0], *(size for size in sizes[1:] if agrees(*run(size))))
    if found != sizes:
        log.info("%s: of sizes %s only %s give the same bits", what, sizes, found)
    return found


def _processor() -> str:
    """Name of the CPU; libraries choose their kernels by it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
