"""Contexts that need not be computed again: equal ones of a batch, and the states of earlier ones.

Trainers ask for the same short windows over and over: on real taxi trips 98 % of the windows of four tokens
have been seen before. As an answer does not depend on its batch, a remembered state is the computed one, bit
for bit.

Contexts are found by a 64-bit hash and always compared in full, so a collision costs time, never an answer.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]

WAYS = 4
"""Slots that a context may be in."""
_NOTHING = -1
_SEED = 0x7EAC


def distinct_rows(rows: Int32) -> tuple[Int32, Int64]:
    """Distinct rows of [n, T] and, for each row, which of them it is.

    If two different rows share a hash, none is merged.
    """
    _, first, inverse = np.unique(_hash(rows), return_index=True, return_inverse=True)
    distinct = rows[first]
    if not np.array_equal(distinct[inverse], rows):
        return rows, np.arange(len(rows), dtype=np.int64)
    return distinct, inverse


class StateCache:
    """Final hidden states of short contexts: a table of sets of `WAYS` slots, the oldest entry of a full set
    making way for the next.

    Attributes:
        width: longest context that it holds, tokens with SOT.
        slots: entries that it has room for.
        lookups, hits: contexts asked for, and found, since the start.
    """

    def __init__(self, size: int, width: int, n_embd: int, dtype: torch.dtype, device: torch.device) -> None:
        """Reserves about `size` bytes; memory of the CPU is taken as it fills."""
        entry = n_embd * dtype.itemsize + (width + 3) * 4
        self._sets = max(1, size // (entry * WAYS))
        self.slots = self._sets * WAYS
        self.width = width
        self.lookups = self.hits = 0
        self._tokens = np.full((self.slots, width), _NOTHING, np.int32)
        self._hashes = np.zeros(self.slots, np.uint64)
        self._oldest = np.zeros(self._sets, np.int32)
        self._states = torch.empty(self.slots, n_embd, dtype=dtype, device=device)

    def find(self, contexts: Int32) -> Int64:
        """Slot of each context [n, T], T <= width; -1 for those that are not held."""
        keys = self._keys(contexts)
        hashes = _hash(keys)
        slots = self._set_of(hashes)[:, None] * WAYS + np.arange(WAYS)
        match = self._hashes[slots] == hashes[:, None]
        slot = slots[np.arange(len(keys)), match.argmax(1)]
        found = match.any(1) & (self._tokens[slot] == keys).all(1)
        self.lookups += len(keys)
        self.hits += int(np.count_nonzero(found))
        return np.where(found, slot, _NOTHING)

    def states(self, slots: Int64) -> Tensor:
        """States of held contexts, [n, D]."""
        return self._states[torch.from_numpy(slots).to(self._states.device)]

    def put(self, contexts: Int32, states: Tensor) -> None:
        """Holds the states [n, D] of distinct contexts [n, T] that it does not hold; one a set and call."""
        keys = self._keys(contexts)
        hashes = _hash(keys)
        sets, first = np.unique(self._set_of(hashes), return_index=True)
        slots = sets * WAYS + self._oldest[sets]
        self._oldest[sets] = (self._oldest[sets] + 1) % WAYS
        self._tokens[slots] = keys[first]
        self._hashes[slots] = hashes[first]
        device = self._states.device
        self._states[torch.from_numpy(slots).to(device)] = states[torch.from_numpy(first).to(device)].to(self._states)

    def _keys(self, contexts: Int32) -> Int32:
        keys = np.full((len(contexts), self.width), _NOTHING, np.int32)
        keys[:, : contexts.shape[1]] = contexts
        return keys

    def _set_of(self, hashes: UInt64) -> Int64:
        return ((hashes >> np.uint64(20)) % np.uint64(self._sets)).astype(np.int64)


def _hash(rows: Int32) -> UInt64:
    """A 64-bit hash of each row: a sum of products with fixed odd numbers, its upper bits the better ones."""
    factors = np.random.default_rng(_SEED).integers(1 << 63, size=rows.shape[1], dtype=np.uint64) * 2 + 1
    hashes: UInt64 = (rows.astype(np.uint64) * factors).sum(1)
    return hashes
