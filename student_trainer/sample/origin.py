"""Where trips begin: the teacher's probability of each cell after SOT, shared among the cell's roads.

The teacher renormalises over the candidates of a position, so all occupied cells are one position where a request may
hold them. Otherwise they are cut into pieces and each is asked with its mass among all tokens: a cell's probability is
then its own within the piece times the piece's mass. Both are float16, which keeps three digits.
"""

from __future__ import annotations

import numpy as np

from shared.arrays import Float64, Int32, Int64
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.distill.teacher import Teacher
from student_trainer.sample.choices import PROBABILITIES


def origin_weights(teacher: Teacher, road_token: Int32, first: Int64, smoothing: float, max_candidates: int) -> Float64:
    """How probable it is that a trip begins on each road, up to a common factor: float64 [N].

    Args:
        teacher: to ask.
        road_token: int32 [N], cell of each road.
        first: int64 [N], labelled trips that begin on each.
        smoothing: added to them.
        max_candidates: of a request.

    Raises:
        TeacherError: it does not answer.
    """
    cells, cell = np.unique(road_token, return_inverse=True)
    weight = first + smoothing
    share = weight / np.bincount(cell, weight)[cell]
    return _cell_weights(teacher, cells, max_candidates)[cell] * share


def _cell_weights(teacher: Teacher, cells: Int32, max_candidates: int) -> Float64:
    pieces = np.array_split(cells, -(-len(cells) // max_candidates))
    has_pieces = len(pieces) > 1
    replies = [future.result() for future in [teacher.submit(_question(piece, has_pieces)) for piece in pieces]]
    weights = [PROBABILITIES[np.ascontiguousarray(reply.log_probs).view(np.uint16)] for reply in replies]
    if has_pieces:
        for weight, reply in zip(weights, replies, strict=True):
            assert reply.candidate_mass is not None
            weight *= float(reply.candidate_mass[0])
    return np.concatenate(weights)


def _question(cells: Int32, with_mass: bool) -> ScoreQuery:
    return ScoreQuery(
        HistoryMode.WINDOW,
        np.zeros(0, np.int32),
        np.zeros(1, np.int32),
        cells.astype(np.int32),
        np.array([len(cells)], np.int32),
        include_candidate_mass=with_mass,
    )
