"""Batch -> query, and the check that teacher and store have the same vocabulary."""

from __future__ import annotations

import numpy as np

from shared import ragged
from shared.errors import CompatibilityError
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, TeacherInfo
from student_trainer.data.batch import Batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig


def build_query(batch: Batch, network: RoadNetwork, distill: DistillConfig) -> ScoreQuery:
    """The teacher's share of a batch: every position's history of cells and its candidates' cells."""
    length = batch.length.numpy()
    inside = np.arange(batch.road.shape[1]) < length[:, None]
    tokens = network.road_token[batch.road.numpy()[inside]]
    candidates = batch.candidate_token.numpy().astype(np.int32)
    candidate_lengths = batch.candidate_length.numpy().astype(np.int32)
    if distill.history == "sequence":
        return ScoreQuery(
            HistoryMode.SEQUENCE, tokens, length.astype(np.int32), candidates, candidate_lengths, distill.window
        )
    window = np.minimum(ragged.positions(length) + 1, distill.window)
    start = np.arange(len(tokens)) + 1 - window
    histories = tokens[ragged.slices(start, window)]
    return ScoreQuery(HistoryMode.WINDOW, histories, window.astype(np.int32), candidates, candidate_lengths)


def check_teacher(info: TeacherInfo, store: Store, distill: DistillConfig, address: str) -> None:
    """Refuses a teacher that does not fit the store or the settings.

    Raises:
        CompatibilityError: naming every value that differs, and how to mend it.
    """
    store.check_vocabulary(info.tokeniser, f"at {address}")
    check_window(info, distill.window, "distill.window", address)


def check_window(info: TeacherInfo, window: int, setting: str, address: str) -> None:
    """Raises `CompatibilityError` if the teacher cannot see a window, which `setting` sets."""
    if window > info.limits.max_window:
        raise CompatibilityError(
            f"{setting} {window} is longer than the teacher at {address} can see: {info.limits.max_window}"
        )
