"""Batch -> query, reply -> target, and the check that teacher and store speak one language."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from shared import ragged
from shared.errors import CompatibilityError
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, ScoreReply, TeacherInfo
from student_trainer.data.batch import Batch
from student_trainer.data.network import RoadNetwork
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kl import TeacherTarget
from student_trainer.model.device import to_device


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
    rows = tokens[ragged.slices(start, window)]
    return ScoreQuery(HistoryMode.WINDOW, rows, window.astype(np.int32), candidates, candidate_lengths)


def build_target(reply: ScoreReply, batch: Batch) -> TeacherTarget:
    """The reply beside the cells it is about, padded like the student's logits, on the batch's device."""
    log_probs = np.zeros(len(batch.candidate_token), np.float32)  # of candidates that pad the batch: any number
    log_probs[: len(reply.log_probs)] = reply.log_probs
    return target_of(to_device(torch.from_numpy(log_probs), batch.candidate_token.device), batch)


def target_of(log_probs: Tensor, batch: Batch) -> TeacherTarget:
    """The teacher's float32 log-probs [K] of a batch's candidates as `build_target` has them."""
    token, layout = batch.candidate_token, batch.layout
    return TeacherTarget.of(layout.pad(log_probs, -torch.inf), layout.pad(token, -1), layout.exists)


def check_teacher(info: TeacherInfo, store: Store, distill: DistillConfig, address: str) -> None:
    """Refuses a teacher that does not fit the store or the settings.

    Raises:
        CompatibilityError: naming every value that differs, and how to mend it.
    """
    if info.tokeniser.fingerprint != store.tokeniser.fingerprint:
        differences = "; ".join(store.tokeniser.differences(info.tokeniser))
        raise CompatibilityError(
            f"the store {store.path} and the teacher at {address} do not share grid and vocabulary "
            f"(store != teacher): {differences}. Prepare the store with grid.teacher=TEACHER_FILE, "
            "or pretrain a teacher on this store"
        )
    if distill.window > info.limits.max_window:
        raise CompatibilityError(
            f"distill.window {distill.window} is longer than the teacher at {address} can see: {info.limits.max_window}"
        )
