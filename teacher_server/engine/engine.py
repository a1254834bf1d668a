"""The frozen teacher: batches of contexts -> candidate log-probabilities. The scorer of `scorer.py`.

    contexts -> tiles (`tiler.py`) -> model -> states of the distinct scored places -> dot with the candidates'
    rows of the head (`head.py`) -> log-softmax over each place's candidates (`softmax.py`)

The full-vocabulary softmax is never computed unless its normaliser is asked for: renormalised over the
candidates it cancels.

Everything that touches floating point runs in shapes of fixed sizes (`shapes.py`), filled up with padding, and every
sequence is computed independently of the others. Sizes are used together only if they were seen to give the same bits
here, on this device (`calibrate.py`): so an answer has the same bits whatever it shares a batch with.

Shapes: S scored places, U distinct states, K candidates, D width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import teacher_file
from shared.errors import InternalError
from shared.teacher_file import TeacherHeader
from shared.wire import ScoreQuery
from teacher_server import checks
from teacher_server.checks import RequestLimits
from teacher_server.engine import calibrate
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.head import Head
from teacher_server.engine.layouts import Tile
from teacher_server.engine.shapes import OVERHEAD, Buckets
from teacher_server.engine.softmax import distinct_log_sum, log_softmax
from teacher_server.engine.threads import Threads
from teacher_server.engine.tiler import Tiler, Tiling, pairs
from teacher_server.lmtad import model
from teacher_server.lmtad.device import find_device, find_dtype
from teacher_server.lmtad.model import LMTAD
from teacher_server.scorer import Batch, Int64, Scores, Served

Float32 = npt.NDArray[np.float32]

CPU_TILE_TOKENS = 512
ACCELERATOR_TILE_TOKENS = 16384


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
    """A frozen LM-TAD on its device; implements `Scorer[Ready]`. On the CPU several tiles are computed at once.

    Attributes:
        served: what it is.
        computed: what it has done.
    """

    def __init__(self, header: TeacherHeader, network: LMTAD, settings: EngineConfig) -> None:
        """Moves the model to its device and dtype, and finds the sizes of tile that give the same bits there.

        Raises:
            ConfigError: the device does not exist here.
        """
        device = find_device(settings.device)
        is_cpu = device.type == "cpu"
        at_once = (settings.threads or os.cpu_count() or 1) if is_cpu else 1
        if is_cpu:
            torch.set_num_threads(1)
        self._threads = Threads(at_once if is_cpu else 0)
        dtype = find_dtype(settings.dtype, device)
        self._device = device
        self._model = network.to(device, dtype).eval().requires_grad_(False)
        self._width = network.architecture.n_embd
        tile_tokens = settings.tile_tokens or (CPU_TILE_TOKENS if is_cpu else ACCELERATOR_TILE_TOKENS)
        self._buckets = Buckets.make(
            network.architecture.block_size,
            settings.smallest_bucket,
            settings.buckets_per_doubling,
            settings.prefix_window,
        )
        sizes = calibrate.tile_sizes(self._model, self._buckets, tile_tokens, self._threads)
        pad = header.tokeniser.vocabulary.pad
        self._tiler = Tiler(self._buckets, sizes, OVERHEAD * tile_tokens, at_once, pad)
        self._head = Head(network.lm_head.weight.detach(), tile_tokens, self._threads)
        self.computed = Computed()
        self.header = header
        self.device = str(device)
        self.compute_dtype = str(dtype).removeprefix("torch.")
        self.parameters = sum(parameter.numel() for parameter in network.parameters())
        self.numerics = self._digest()
        self.served = Served(self.header, self.device, self.compute_dtype, self.parameters, self.numerics)

    @property
    def costs(self) -> Int64:
        """Padded tokens of a context by its length with SOT: int64 [block size + 1]."""
        return self._buckets.costs

    def check(self, query: ScoreQuery, max_positions: int, max_candidates: int) -> None:
        """See `checks.check`."""
        served = self.served
        checks.check(query, RequestLimits(served.cells, served.longest, max_positions, max_candidates))

    def assemble(self, batch: Batch) -> Ready:
        """Cuts a batch into tiles; any thread."""
        tiling = self._tiler.tile(batch)
        return Ready(batch, tiling, pairs(tiling, batch))

    @torch.inference_mode()
    def score(self, ready: Ready) -> Scores:
        """Scores an assembled batch; one thread at a time.

        Raises:
            InternalError: the model gave a value that is not finite.
        """
        batch = ready.batch
        states = self._states(ready.tiling)
        logits = self._head.logits(states, np.ascontiguousarray(ready.pairs.T))
        if not bool(np.all(np.isfinite(logits))):
            raise InternalError(
                f"the teacher's logits are not finite in {self.compute_dtype}; try engine.dtype=float32"
            )
        mass = np.zeros(len(batch.with_mass), np.float16)
        if batch.with_mass.any():
            mass[batch.with_mass] = self._masses(ready, states, logits)
        return Scores(log_softmax(logits, batch.candidate_lengths), mass)

    def warm_up(self) -> None:
        """Runs the whole model once, on a long context and a short one, which are laid out differently. All its shapes
        have been run before, to compare them."""
        longest = self._buckets.widths[-1]
        tokens = np.zeros(longest + 1, np.int32)
        lengths, one, row = np.array([longest, 1]), np.ones(2, np.int64), np.arange(2)
        self.score(self.assemble(Batch(tokens, lengths, row, lengths - 1, tokens[:2], one, one > 0)))

    def _states(self, tiling: Tiling) -> Tensor:
        """Final hidden states of the distinct scored places: float32 [U, D]."""
        states = torch.empty(tiling.states, self._width, device=self._device)

        def run(tile: Tile) -> None:
            states[tile.first : tile.first + tile.count] = tile.states(self._model, self._device).float()

        self._threads.each(run, tiling.tiles)
        self.computed.add(tiling)
        return states

    def _masses(self, ready: Ready, states: Tensor, logits: Float32) -> npt.NDArray[np.float64]:
        """Total probability of each place's distinct candidate cells, for the places that want it."""
        batch, wanted = ready.batch, ready.batch.with_mass
        of_wanted = np.repeat(wanted, batch.candidate_lengths)
        log_mass = distinct_log_sum(logits[of_wanted], batch.candidates[of_wanted], batch.candidate_lengths[wanted])
        distinct, inverse = np.unique(ready.tiling.state[wanted], return_inverse=True)
        normalisers = self._head.log_normalisers(states, distinct)
        masses: npt.NDArray[np.float64] = np.exp(np.minimum(log_mass - normalisers.astype(np.float64)[inverse], 0.0))
        return masses

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
            self._head.chunks.sizes,
            self._head.normaliser_chunks.sizes,
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


def _processor() -> str:
    """Name of the CPU; libraries choose their kernels by it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
