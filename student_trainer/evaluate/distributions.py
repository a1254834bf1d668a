"""Distributions over all trips, and how far those of real and generated trips are apart."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse

from shared import ragged
from shared.arrays import Float64, Int64

EDGES = 100
"""Finite edges of a histogram, as upstream has them: 99 bins up to the largest real value, and one for what is
above, which also takes that value itself."""


@dataclasses.dataclass(frozen=True, eq=False)
class Values:
    """A quantity of n trips: one value each, or several.

    Attributes:
        flat: values, trips back to back.
        offsets: int64 [n + 1].
    """

    flat: Float64
    offsets: Int64

    @classmethod
    def one_each(cls, values: Float64) -> Values:
        """A value a trip."""
        return cls(values, np.arange(len(values) + 1))

    def binned(self, edges: Float64) -> scipy.sparse.csr_array:
        """How many values of each trip fall into each bin: [n, EDGES]."""
        place = np.clip(np.searchsorted(edges, self.flat, side="right") - 1, 0, len(edges) - 1)
        row = ragged.rows(np.diff(self.offsets))
        shape = (len(self.offsets) - 1, len(edges))
        return scipy.sparse.csr_array((np.ones(len(place)), (row, place)), shape=shape)


def totals(binned: scipy.sparse.csr_array) -> Float64:
    """Counts of all trips, [bins]."""
    return np.asarray(binned.sum(axis=0), np.float64)


def edges_of(real: Float64) -> Float64:
    """The finite edges, float64 [EDGES], from 0 to the largest real value."""
    largest = float(real.max(initial=0.0))
    return np.linspace(0, largest if largest > 0 else 1.0, EDGES)


def jensen_shannon_nats(p: Float64, q: Float64) -> Float64:
    """Jensen-Shannon divergence of counts [..., bins], in nats: (KL(p, m) + KL(q, m)) / 2 with m = (p + q) / 2.

    Between 0 and ln 2; NaN where a side has no counts. In bits it is divided by ln 2. (Its root is a metric, which
    this is not.)
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        p, q = p / p.sum(axis=-1, keepdims=True), q / q.sum(axis=-1, keepdims=True)
        middle = (p + q) / 2
        terms = [np.where(side > 0, side * np.log(side / middle), 0.0) for side in (p, q)]
    empty = np.isnan(p).any(axis=-1) | np.isnan(q).any(axis=-1)
    return np.asarray(np.where(empty, np.nan, np.maximum((terms[0] + terms[1]).sum(axis=-1) / 2, 0.0)))
