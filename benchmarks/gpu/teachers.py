"""All that the parts need of the teacher's engine: the only module here that knows how it is built."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu.size import Size
from benchmarks.local import LocalTeacher
from benchmarks.questions import Positions
from benchmarks.weights import write_random
from shared import ragged, teacher_file
from shared.grid import Grid
from shared.store import Store
from shared.vocab import Tokeniser, Vocabulary
from teacher_server.engine import calibrate, engine
from teacher_server.engine.config import EngineConfig
from teacher_server.engine.cuda_graphs import Shape
from teacher_server.engine.engine import Engine
from teacher_server.engine.layouts import Tile
from teacher_server.engine.shapes import Kind
from teacher_server.lmtad import export, model
from teacher_server.lmtad.config import ExportConfig
from teacher_server.lmtad.model import LMTAD
from teacher_server.pretrain import run as pretraining
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.scorer import Batch, Scores

CACHE_MIB = 1024
"""Room for everything that the passes ask."""
PRODUCTS_A_NODE = 24
"""Multiplications and additions of a token in a block, in squares of the width: attention 8, the rest 16."""


def write_wide(folder: Path, size: Size, cells: int = 0) -> Path:
    """Writes a teacher with random weights over a full grid of the size's cells, or more; returns its path.

    Args:
        folder: where to write.
        size: of the teacher.
        cells: at least so many: tokens that it will be asked about are below.
    """
    rows, columns = size.grid
    rows = max(rows, -(-cells // columns))
    path = folder / f"teacher_{size.n_layer}x{size.n_embd}_{rows * columns}.safetensors"
    if not path.exists():
        grid = Grid.from_bounds((0.0, 0.0, 0.01 * (rows - 0.5), 0.01 * (columns - 0.5)), 0.01, 0.01)
        tokeniser = Tokeniser(Vocabulary.full(grid.cells), grid)
        write_random(path, tokeniser, size.n_layer, size.n_embd, size.n_head)
    return path


def write_for(folder: Path, store: Store, size: Size) -> Path:
    """Writes a teacher with random weights and a store's vocabulary, which a trainer accepts; returns its path."""
    path = folder / f"teacher_{size.n_layer}x{size.n_embd}_{store.tokeniser.fingerprint[:8]}.safetensors"
    if not path.exists():
        write_random(path, store.tokeniser, size.n_layer, size.n_embd, size.n_head)
    return path


def sot_of(path: Path) -> int:
    """The token that a teacher file's contexts start with."""
    return teacher_file.read_header(path).tokeniser.vocabulary.sot


def overrides(device: torch.device, size: Size) -> list[str]:
    """A daemon's settings that are `load`'s."""
    return [
        f"engine.device={device}",
        f"engine.tile_tokens={size.tile_tokens}",
        "engine.allow_batch_dependence=true",
    ]


def load(path: Path, device: torch.device, size: Size) -> Engine:
    """The engine of a teacher file on a device, as the daemon makes it; its log says if bits depend on the batch."""
    settings = EngineConfig(device=str(device), tile_tokens=size.tile_tokens, allow_batch_dependence=True)
    return engine.load(path, settings)


def plain(path: Path, device: torch.device, dtype: torch.dtype) -> LMTAD:
    """The model alone, for the obvious implementations."""
    header, weights = teacher_file.read(path)
    return model.load(header, weights).to(device, dtype).eval()


def local(scorer: Engine) -> LocalTeacher:
    """An engine with an empty table of rows."""
    return LocalTeacher(scorer, CACHE_MIB)


def chosen_sizes(scorer: Engine) -> dict[str, list[int]]:
    """Sizes of tile by group, and chunks of candidates and of the normaliser: those with the same bits."""
    found = {
        f"{group.kind.value}, {group.width} tokens": list(sizes)
        for group, sizes in sorted(scorer._tiler.sizes.items(), key=lambda item: (item[0].kind.value, item[0].width))
    }
    found["candidates"] = list(scorer._head.chunks.sizes)
    found["normaliser"] = list(scorer._head.normaliser_chunks.sizes)
    return found


AS_SERVED = "as served"
"""The way in which a tile is computed; others are its baselines."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """A tile of the window's contexts, and how to compute it.

    Attributes:
        nodes: of the tile.
        ways: calls that compute it on the device, `AS_SERVED` first.
        operations: of its matrix products.
    """

    nodes: int
    ways: dict[str, Callable[[], object]]
    operations: float


def sample_tiles(scorer: Engine, size: Size) -> Iterator[Sample]:
    """One for each size of tile of the window's contexts."""
    groups = [group for group in scorer._tiler.sizes if group.kind is Kind.TREE and group.width >= size.window + 1]
    group = min(groups, key=lambda group: group.width)
    random = np.random.default_rng(0)
    sizes = scorer._tiler.sizes[group]
    vocabulary = scorer.served.header.tokeniser.vocabulary
    architecture = scorer._model.architecture
    for nodes in sizes:
        tokens = random.integers(vocabulary.cells, size=(group.samples(sizes[-1]), group.width), dtype=np.int32)
        tile, _ = calibrate.sample(group, nodes, tokens, random)
        square = architecture.n_embd**2
        # in the last block all nodes need keys and values, only the scored ones the rest
        last = 4 * nodes + (PRODUCTS_A_NODE - 4) * tile.count
        operations = square * ((architecture.n_layer - 1) * PRODUCTS_A_NODE * nodes + last)
        yield Sample(nodes, _ways(scorer, tile), operations)


def _ways(scorer: Engine, tile: Tile) -> dict[str, Callable[[], object]]:
    """On an accelerator its inputs are there already: one copy brings those of a whole batch."""
    graphs, streams = scorer._graphs, scorer._streams
    if graphs is None or streams is None:
        return {AS_SERVED: lambda: tile.states(scorer._model, scorer._device)}
    shape = Shape(tile.group, tile.size)
    numbers = torch.zeros(shape.numbers, dtype=torch.int32)
    flat = np.append(tile.inputs.reshape(-1), tile.index)
    numbers[: len(flat)] = torch.from_numpy(flat)
    there = numbers.to(scorer._device)
    served = scorer._model.attend_to

    def as_served() -> None:
        with streams.computing():
            graphs.states(shape, there)

    def without_graph() -> None:
        with streams.computing():
            graphs.compute(shape)

    def without_kernel() -> None:
        scorer._model.attend_to = None
        try:
            without_graph()
        finally:
            scorer._model.attend_to = served

    return {AS_SERVED: as_served, "without a graph": without_graph, "without graph and own attention": without_kernel}


def exported(checkpoint: Path, out: Path) -> Path:
    """The teacher file of an upstream checkpoint; returns its path."""
    export.run(ExportConfig(checkpoint=checkpoint, out=out))
    return out


def pretrained(store: Store, out: Path, device: torch.device, dtype: str, steps: int) -> Path:
    """Pretrains a small teacher for so many steps; returns the path of its file."""
    values = {"data": store.path, "out": out, "device": str(device), "dtype": dtype, "max_steps": steps}
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "batch_tokens": 256, "warmup_steps": 5, "epochs": steps}
    pretraining.run(PretrainConfig.model_validate(values | small))
    return out


def batch_of(contexts: Sequence[Sequence[int]], candidates: Sequence[int] = (0,)) -> Batch:
    """Whole contexts, each scored at its end for the same candidates, with their total probability."""
    lengths = np.array([len(context) for context in contexts], np.int64)
    count = len(contexts)
    return Batch(
        tokens=np.concatenate([np.array(context, np.int32) for context in contexts]),
        lengths=lengths,
        scored_row=np.arange(count),
        scored_place=lengths - 1,
        candidates=np.tile(np.array(candidates, np.int32), count),
        candidate_lengths=np.full(count, len(candidates), np.int64),
        with_mass=np.ones(count, np.bool_),
    )


def scores(scorer: Engine, contexts: Sequence[Sequence[int]], candidates: Sequence[int]) -> Scores:
    """Log-probabilities of the candidates after each context, and their total probability; one batch."""
    return scorer.score(scorer.assemble(batch_of(contexts, candidates)))


def hidden_states(scorer: Engine, contexts: Sequence[Sequence[int]]) -> Tensor:
    """Final hidden states after whole contexts, computed in one batch: float32 [n, D] on the CPU."""
    ready = scorer.assemble(batch_of(contexts))
    with torch.inference_mode(), scorer._computing():
        if scorer._accelerated is None or ready.packed is None:
            states = scorer._states(ready.tiling)
        else:
            states = scorer._accelerated.states(ready.packed).float()
        return states[torch.from_numpy(ready.tiling.state).to(states.device)].cpu()


def plain_states(scorer: Engine, contexts: Sequence[Sequence[int]], with_kernel: bool = True) -> Tensor:
    """`hidden_states` without graphs, and with the reference's attention if that is wanted."""
    served = scorer._model.attend_to
    scorer._model.attend_to = served if with_kernel else None
    tiling = scorer._tiler.tile(batch_of(contexts))
    try:
        with torch.inference_mode(), scorer._computing():
            states = scorer._states(tiling)
            return states[torch.from_numpy(tiling.state).to(states.device)].cpu()
    finally:
        scorer._model.attend_to = served


class Warnings(logging.Handler):
    """Keeps what the engine warns of."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps the text of a record."""
        self.texts.append(f"{record.levelname.lower()}: {record.getMessage()}")

    @classmethod
    def listening(cls) -> Warnings:
        """One that hears the teacher's modules from now on."""
        handler = cls()
        logger = logging.getLogger("teacher_server")
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        return handler


@torch.inference_mode()
def at_once(network: LMTAD, positions: Positions, first: int, count: int, window: int, sot: int) -> np.ndarray:
    """The obvious implementation at its best: all windows in one padded forward pass, the full softmax at their ends.

    Returns:
        float32 [K], log-probabilities of the candidates, renormalised.
    """
    query = positions.windows(first, count, window)
    device = network.lm_head.weight.device
    lengths = query.history_lengths.astype(np.int64) + 1
    starts = ragged.offsets(lengths)
    tokens = np.full(int(lengths.sum()), sot, np.int32)
    is_cell = np.ones(len(tokens), np.bool_)
    is_cell[starts[:-1]] = False
    tokens[is_cell] = query.history_tokens
    padded = torch.from_numpy(ragged.pad(tokens, lengths, window + 1, sot)).to(device)  # causal: padding is not seen
    ends = torch.from_numpy(lengths - 1).to(device)
    row = torch.from_numpy(ragged.rows(query.candidate_lengths)).to(device)
    cell = torch.from_numpy(query.candidate_tokens.astype(np.int64)).to(device)
    return chosen(network, padded, ends, row, cell, count).cpu().numpy()


def chosen(network: LMTAD, tokens: Tensor, ends: Tensor, row: Tensor, cell: Tensor, count: int) -> Tensor:
    """`at_once` on the device: tokens [n, T], ends [n], row and cell [K] of the candidates -> float32 [K]."""
    last = network.hidden(tokens)[torch.arange(count, device=tokens.device), ends]
    probabilities = network.lm_head(last).float().softmax(-1)[row, cell]
    total = torch.zeros(count, device=tokens.device).index_add_(0, row, probabilities)
    return torch.log(probabilities / total[row])
