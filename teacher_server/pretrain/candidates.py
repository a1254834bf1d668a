"""How well a teacher chooses among what students are asked about: the successors of the current road.

A teacher knows cells, so candidates in one cell are the same to it, and it guesses among them. Its accuracy stands
beside the floors of the store, which `prepare` measures on all validation steps.

Shapes: P positions, each of a trip's steps; C candidates of all of them, back to back; D width of the model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.arrays import Float64, Int32, Int64
from shared.errors import FileFormatError
from shared.floors import RULES
from shared.store import Store, Trips
from teacher_server.lmtad.model import LMTAD
from teacher_server.pretrain.corpus import make_batches


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """Steps of validation trips with their candidates.

    Attributes:
        tokens: int32 [L], cells of the trips, back to back.
        starts: int64 [P], where the trip of each position begins.
        lengths: int64 [P], its tokens up to the current road's.
        offsets: int64 [P + 1], into `candidates`.
        candidates: int32 [C], their cells.
        label: int32 [P], the next road's cell.
    """

    tokens: Int32
    starts: Int64
    lengths: Int64
    offsets: Int64
    candidates: Int32
    label: Int32


def read_steps(store: Store, trips: int) -> Steps:
    """The steps of so many validation trips, taken evenly.

    Raises:
        DataError: the store has no validation trips.
        FileFormatError: the store is damaged.
    """
    val = store.trips("val")
    chosen = val.take(np.unique(np.linspace(0, len(val) - 1, min(trips, len(val))).astype(np.int64)))
    offsets, successors = store.network("successor_offsets"), store.network("successors")
    if len(offsets) != len(store.road_token) + 1 or offsets[-1] != len(successors):
        raise FileFormatError(f"{store.path}: successors do not belong to the roads; run `prepare` again")
    return _steps(chosen, store.road_token, offsets.astype(np.int64), successors)


def _steps(trips: Trips, road_token: Int32, offsets: Int64, successors: Int32) -> Steps:
    place = ragged.positions(trips.lengths)
    at = np.flatnonzero(place + 1 < np.repeat(trips.lengths, trips.lengths))  # a road that has a next one
    road = trips.roads[at].astype(np.int64)
    degree = offsets[road + 1] - offsets[road]
    return Steps(
        tokens=road_token[trips.roads],
        starts=at - place[at],
        lengths=place[at] + 1,
        offsets=ragged.offsets(degree),
        candidates=road_token[successors[ragged.slices(offsets[road], degree)]],
        label=road_token[trips.roads[at + 1]],
    )


@torch.no_grad()
def accuracy(
    model: LMTAD, steps: Steps, sot: int, window: int, batch_tokens: int, device: torch.device
) -> float | None:
    """The share of steps whose next road the teacher names, guesses within a cell counted by their chance.

    Args:
        model: in float32.
        steps: the steps.
        sot: token before every history.
        window: tokens of history; 0: the whole trip so far, as much of it as the block holds.
        batch_tokens: tokens that the device computes at once.
        device: the model's.

    Returns:
        In [0, 1]; None where there is no step.
    """
    model.eval()
    longest = model.architecture.block_size - 1
    is_whole = (steps.lengths <= longest) & (window == 0)
    hits = np.zeros(len(steps.label))
    for rows, states in (
        *_states_of_trips(model, steps, np.flatnonzero(is_whole), sot, batch_tokens, device),
        *_states_of_windows(
            model, steps, np.flatnonzero(~is_whole), sot, min(window or longest, longest), batch_tokens, device
        ),
    ):
        hits[rows] = _chances(model, steps, rows, states)
    return float(hits.mean()) if len(hits) else None


States = Iterator[tuple[Int64, Tensor]]
"""Some positions, int64 [P], and what the teacher makes of their contexts, [P, D]."""


def _states_of_trips(
    model: LMTAD, steps: Steps, rows: Int64, sot: int, batch_tokens: int, device: torch.device
) -> States:
    """Of whole histories, a pass a trip: what comes later changes nothing."""
    starts, trip = np.unique(steps.starts[rows], return_inverse=True)
    lengths = np.zeros(len(starts), np.int64)
    np.maximum.at(lengths, trip, steps.lengths[rows])
    for part in make_batches(lengths + 1, batch_tokens, None):
        width = int(lengths[part].max())
        history = ragged.pad(steps.tokens[ragged.slices(starts[part], lengths[part])], lengths[part], width, sot)
        states = model.hidden(_contexts(history, sot, device))
        row_of = np.full(len(starts), -1)
        row_of[part] = np.arange(len(part))
        mine = np.flatnonzero(row_of[trip] >= 0)
        at = row_of[trip[mine]], steps.lengths[rows[mine]]
        yield rows[mine], states[torch.from_numpy(at[0]).to(device), torch.from_numpy(at[1]).to(device)]


def _states_of_windows(
    model: LMTAD, steps: Steps, rows: Int64, sot: int, window: int, batch_tokens: int, device: torch.device
) -> States:
    """Of the last tokens alone, a context a position."""
    seen = np.minimum(steps.lengths[rows], window)
    for part in make_batches(seen + 1, batch_tokens, None):
        lengths, mine = seen[part], rows[part]
        first = steps.starts[mine] + steps.lengths[mine] - lengths
        history = ragged.pad(steps.tokens[ragged.slices(first, lengths)], lengths, int(lengths.max()), sot)
        last = np.arange(len(mine)) * (history.shape[1] + 1) + lengths
        yield mine, model.hidden_at(_contexts(history, sot, device), torch.from_numpy(last).to(device))


def _contexts(history: Int32, sot: int, device: torch.device) -> Tensor:
    """SOT before every row: int32 [B, T] -> [B, T + 1]."""
    return torch.from_numpy(np.pad(history, ((0, 0), (1, 0)), constant_values=sot)).to(device)


def _chances(model: LMTAD, steps: Steps, rows: Int64, states: Tensor) -> Float64:
    """The chance that the teacher names the next road: 0 where another cell is more probable, otherwise one in the
    number of candidates of its cell: float64 [P]."""
    degree = steps.offsets[rows + 1] - steps.offsets[rows]
    candidates = steps.candidates[ragged.slices(steps.offsets[rows], degree)]
    words = model.lm_head.weight[torch.from_numpy(candidates.astype(np.int64)).to(states.device)]
    logits = (states[torch.from_numpy(ragged.rows(degree)).to(states.device)] * words).sum(-1).cpu().numpy()
    chances = np.zeros(len(rows))
    has = degree > 0
    if has.any():
        starts = ragged.offsets(degree[has])[:-1]
        highest = np.flatnonzero(logits == np.repeat(np.maximum.reduceat(logits, starts), degree[has]))
        named = candidates[highest[np.searchsorted(highest, starts)]]
        alike = np.add.reduceat((candidates == np.repeat(named, degree[has])).astype(np.int64), starts)
        chances[has] = (named == steps.label[rows[has]]) / alike
    return chances


def measure(
    model: LMTAD, steps: Steps, sot: int, windows: Sequence[int], batch_tokens: int, device: torch.device
) -> dict[str, float | None]:
    """`accuracy` by window, as a teacher's file and the result on stdout have it."""
    return {str(window): accuracy(model, steps, sot, window, batch_tokens, device) for window in windows}


def floors_of(store: Store) -> dict[str, float]:
    """What rules without a model reach on the store's validation steps; empty where `prepare` has not measured it."""
    known = store.manifest.get("floors", {})
    return {name: float(known[name]) for name in RULES if name in known}
