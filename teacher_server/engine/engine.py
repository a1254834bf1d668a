"""The frozen teacher: batches of contexts -> candidate log-probabilities. The scorer of `scorer.py`.

    contexts -> tiles (`tiler.py`) -> model -> states of the distinct scored places -> dot with the candidates'
    rows of the head (`head.py`) -> log-softmax over each place's candidates (`softmax.py`)

The full-vocabulary softmax is never computed unless its normaliser is asked for: renormalised over the
candidates it cancels.

Everything that touches floating point runs in shapes of fixed sizes (`shapes.py`), filled up with padding, and every
sequence is computed independently of the others. Sizes are used together only if they were seen to give the same bits
here, on this device (`calibrate.py`): so an answer has the same bits whatever it shares a batch with.

On an accelerator our own kernels compute where they agree and are faster (`fused.py`), tiles are recorded graphs
(`graphs.py`), and a batch is one copy there and one back (`accelerated.py`).

Shapes: S scored places, U distinct states, K candidates, D width.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shared import teacher_file
from shared.arrays import Float32, Int64
from shared.errors import ConfigError, InternalError
from shared.teacher_file import TeacherHeader
from teacher_server.engine import arithmetic, calibrate, fused
from teacher_server.engine.accelerated import Accelerated, Packed
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.cuda_graphs import Graphs
from teacher_server.engine.fused import Fused
from teacher_server.engine.head import Head
from teacher_server.engine.layouts import Tile
from teacher_server.engine.shapes import ACCELERATOR_LEAST_ENDS, ACCELERATOR_SIZES, LEAST_ROWS, OVERHEAD, SIZES, Buckets
from teacher_server.engine.softmax import distinct_log_sum, log_softmax
from teacher_server.engine.streams import CudaStreams, Streams
from teacher_server.engine.threads import Threads
from teacher_server.engine.tiler import Tiler, Tiling, pairs_of
from teacher_server.lmtad import model
from teacher_server.lmtad.device import find_device, find_dtype
from teacher_server.lmtad.model import LMTAD
from teacher_server.scorer import Batch, ScorerLost, Scores, Served

log = logging.getLogger(__name__)


RECORDING_SECONDS = 3.0
"""Spent on graphs before the first request; shapes that are left are recorded when they are first needed."""
CPU_TILE_TOKENS = 512
ACCELERATOR_TILE_TOKENS = 16384


@dataclasses.dataclass(frozen=True, eq=False)
class Ready:
    """An assembled batch.

    Attributes:
        batch: what is asked.
        tiling: its contexts in tiles.
        pairs: int64 [K, 2], state and token of each candidate.
        wanted: int64 [W], ascending: states whose normaliser is wanted.
        packed: on its way to an accelerator; none on a CPU.
    """

    batch: Batch
    tiling: Tiling
    pairs: Int64
    wanted: Int64
    packed: Packed | None = None


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

    def __init__(
        self, header: TeacherHeader, network: LMTAD, settings: EngineConfig, streams: Streams | None = None
    ) -> None:
        """Moves the model to its device and dtype, chooses how to compute, and finds the sizes that give the same bits.

        Args:
            header: of the teacher file.
            network: the model.
            settings: see `EngineConfig`.
            streams: for a device that is treated as an accelerator; none: a CUDA device's own.

        Raises:
            ConfigError: the device does not exist here, or an answer's bits would depend on its batch there.
        """
        device = find_device(settings.device)
        is_cpu = device.type == "cpu"
        if not is_cpu:
            arithmetic.fix()
        at_once = (settings.threads or os.cpu_count() or 1) if is_cpu and streams is None else 1
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
            LEAST_ROWS if is_cpu else ACCELERATOR_LEAST_ENDS,
        )
        self._streams = CudaStreams(device) if streams is None and not is_cpu else streams
        with self._computing(), torch.inference_mode():
            self._fused = Fused() if is_cpu or self._streams is None else fused.choose(self._model, self._streams)
            self._model.attend_to = self._fused.attend
            dependent: list[str] = []
            count = SIZES if is_cpu else ACCELERATOR_SIZES
            sizes = calibrate.tile_sizes(self._model, self._buckets, tile_tokens, self._threads, dependent, count)
            self._head = Head(network.lm_head.weight.detach(), tile_tokens, self._threads, self._fused)
            self._graphs = None if self._streams is None else Graphs(self._model, sizes, self._streams)
            if self._graphs is not None:
                self._graphs.choose()
        pad = header.tokeniser.vocabulary.pad
        self._tiler = Tiler(self._buckets, sizes, OVERHEAD * tile_tokens, at_once, pad)
        self._accelerated = (
            None
            if self._graphs is None or self._streams is None
            else Accelerated(self._model, self._head, self._graphs, self._streams)
        )
        self._is_dependent = _depends(dependent + self._head.dependent, settings.allow_batch_dependence, device)
        self.computed = Computed()
        compute_dtype = str(dtype).removeprefix("torch.")
        parameters = sum(parameter.numel() for parameter in network.parameters())
        numerics = self._digest(header.revision, compute_dtype)
        self.served = Served(header, self._place(), compute_dtype, parameters, numerics)

    @property
    def costs(self) -> Int64:
        """Padded tokens of a context by its length with SOT: int64 [block size + 1]."""
        return self._buckets.costs

    def assemble(self, batch: Batch) -> Ready:
        """Cuts a batch into tiles, and starts to send it to an accelerator; any thread.

        Raises:
            ScorerLost: the device can compute no more.
        """
        tiling = self._tiler.tile(batch)
        pairs = pairs_of(tiling, batch)
        wanted = np.unique(tiling.state[batch.with_mass])
        if self._accelerated is None:
            return Ready(batch, tiling, pairs, wanted)
        with self._losing():
            return Ready(batch, tiling, pairs, wanted, self._accelerated.pack(tiling, pairs, wanted))

    @torch.inference_mode()
    def score(self, ready: Ready) -> Scores:
        """Scores an assembled batch; one thread at a time.

        Raises:
            InternalError: the model gave a value that is not finite.
            ScorerLost: the device can compute no more.
        """
        batch = ready.batch
        logits, normalisers = self._compute(ready)
        if not bool(np.all(np.isfinite(logits))):
            raise InternalError(
                f"the teacher's logits are not finite in {self.served.compute_dtype}; try engine.dtype=float32"
            )
        mass = np.zeros(len(batch.with_mass), np.float16)
        if batch.with_mass.any():
            mass[batch.with_mass] = _masses(ready, logits, normalisers)
        return Scores(log_softmax(logits, batch.candidate_lengths), mass)

    def warm_up(self) -> None:
        """Runs the whole model once, on a long context and a short one, which are laid out differently. All its shapes
        have been run before, to compare them. Records those of an accelerator."""
        if self._graphs is not None:
            with self._losing(), self._computing(), torch.inference_mode():
                self._graphs.prepare(RECORDING_SECONDS)
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
        return states

    def _compute(self, ready: Ready) -> tuple[Float32, Float32]:
        """Logits of the candidates, float32 [K], and the wanted normalisers, float32 [W]."""
        self.computed.add(ready.tiling)
        if self._accelerated is not None and ready.packed is not None:
            with self._losing():
                return self._accelerated.compute(ready.packed)
        states = self._states(ready.tiling)
        logits = self._head.logits(states, ready.pairs)
        return logits, self._head.log_normalisers(states, ready.wanted)

    def _computing(self) -> AbstractContextManager[object]:
        """Within the block this thread's work is on the device's compute stream."""
        return contextlib.nullcontext() if self._streams is None else self._streams.computing()

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Turns errors after which a CUDA device computes nothing more for this process into `ScorerLost`."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, torch.OutOfMemoryError) or not _is_of_device(error):
                raise
            raise ScorerLost(f"{self._device} is lost: {str(error).partition(chr(10))[0]}") from error

    def _place(self) -> str:
        """The device, and how it computes if it is no plain CPU."""
        if self._graphs is None:
            return str(self._device)
        how = [f"own {name}" for name in self._fused.names] + ["graphs"] * self._graphs.is_on
        how += ["bits depend on the batch"] * self._is_dependent
        return f"{self._device} ({', '.join(how) or 'plain operations'})"

    def _digest(self, revision: str, compute_dtype: str) -> str:
        """All that the last bits of an answer depend on, in 16 hexadecimal digits."""
        is_cpu = self._device.type == "cpu"
        parts = [
            revision,
            self._device.type,
            _processor() if is_cpu else torch.cuda.get_device_name(self._device),
            torch.backends.cpu.get_cpu_capability(),
            compute_dtype,
            torch.__version__,
            np.__version__,
            self._buckets.widths,
            self._buckets.prefix_width,
            sorted((group.kind.value, group.width, sizes) for group, sizes in self._tiler.sizes.items()),
            self._head.chunks.sizes,
            self._head.normaliser_chunks.sizes,
        ]
        if not is_cpu:
            parts += [arithmetic.versions(), self._fused.names]
        if self._is_dependent:
            parts.append(secrets.token_hex(8))  # never equal: such answers are not for a later process
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def load(path: Path, settings: EngineConfig) -> Engine:
    """The engine of a teacher file.

    Raises:
        FileFormatError: the file is damaged or inconsistent.
        ConfigError: the device does not exist here, or an answer's bits would depend on its batch there.
    """
    header, weights = teacher_file.read(path)
    return Engine(header, model.load(header, weights), settings)


def _masses(ready: Ready, logits: Float32, normalisers: Float32) -> npt.NDArray[np.float64]:
    """Total probability of each place's distinct candidate cells, for the places that want it."""
    batch, wanted = ready.batch, ready.batch.with_mass
    of_wanted = np.repeat(wanted, batch.candidate_lengths)
    log_mass = distinct_log_sum(logits[of_wanted], batch.candidates[of_wanted], batch.candidate_lengths[wanted])
    which = np.searchsorted(ready.wanted, ready.tiling.state[wanted])
    masses: npt.NDArray[np.float64] = np.exp(np.minimum(log_mass - normalisers.astype(np.float64)[which], 0.0))
    return masses


def _depends(dependent: Sequence[str], is_allowed: bool, device: torch.device) -> bool:
    """Whether the last bits of an answer depend on its batch; raises `ConfigError` unless that is allowed."""
    if not dependent:
        return False
    what = f"the last bits of an answer may depend on its batch on {device}: {', '.join(sorted(dependent))}"
    if not is_allowed:
        raise ConfigError(
            f"{what}; try engine.dtype=float32 or another engine.tile_tokens, or serve such answers with "
            "engine.allow_batch_dependence=true"
        )
    log.warning("%s; engine.allow_batch_dependence=true: served, and remembered for this process only", what)
    return True


def _is_of_device(error: RuntimeError) -> bool:
    return type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)


def _processor() -> str:
    """Name of the CPU; libraries choose their kernels by it."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text(encoding="utf-8").splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
