"""Asking a teacher from Python: cells in, log-probabilities out; the client is the trainer's."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, overload

import numpy as np

from shared import ragged
from shared.address import check_teachers
from shared.arrays import Float64, Int32, Integers
from shared.errors import ConfigError, DataError
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, TeacherInfo
from student_trainer.distill.client import GrpcTeacher
from student_trainer.distill.config import ClientConfig


@dataclasses.dataclass(frozen=True, eq=False)
class TeacherScore:
    """What a teacher says of one history's C candidates.

    Attributes:
        log_probabilities: float64 [C] of the next cell being the candidate, among the candidates; sent as float16.
    """

    log_probabilities: Float64

    @property
    def probabilities(self) -> Float64:
        """float64 [C]; candidates in one cell have its whole mass each, renormalised."""
        return np.exp(self.log_probabilities)


class Teacher:
    """A running teacher; a context manager.

    Attributes:
        info: what it is: weights revision, vocabulary and grid, limits, device.
    """

    def __init__(self, client: GrpcTeacher) -> None:
        """Takes a connection over; see `connect`."""
        self.info: TeacherInfo = client.info
        self._client = client

    @classmethod
    def connect(
        cls,
        address: str,
        store: str | Path | Store | None = None,
        *,
        wait_seconds: float = 10.0,
        settings: ClientConfig | None = None,
    ) -> Self:
        """Connects to a teacher, or to several that serve the same weights.

        Args:
            address: HOST:PORT, unix:PATH, several between commas, or a gRPC name.
            store: whose cells are going to be asked for; None if that needs no check.
            wait_seconds: how long the teacher may take to answer, and how long a failed question is repeated.
            settings: of the trainer's client, as `client.*` of `train`, instead of `wait_seconds`.

        Raises:
            ConfigError: the address cannot be one.
            Unavailable: nobody answered in time.
            CompatibilityError: the teacher's vocabulary is not the store's, or several serve different weights.
        """
        try:
            if check_teachers(address) == "none":
                raise ValueError("expected HOST:PORT[,HOST:PORT...]")
        except ValueError as error:
            raise ConfigError(f"address: {error}") from None
        patience = {"connect_seconds": wait_seconds, "deadline_seconds": wait_seconds, "retry_seconds": wait_seconds}
        teacher = cls(GrpcTeacher(address, settings or ClientConfig.model_validate(patience)))
        if store is not None:
            try:
                opened = store if isinstance(store, Store) else Store.open(store)
                opened.check_vocabulary(teacher.info.tokeniser, f"at {address}")
            except BaseException:
                teacher.close()
                raise
        return teacher

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def score(self, history: Integers, candidates: Integers) -> TeacherScore: ...

    @overload
    def score(self, history: Sequence[Integers], candidates: Sequence[Integers]) -> list[TeacherScore]: ...

    def score(self, history: Any, candidates: Any) -> TeacherScore | list[TeacherScore]:
        """How probable each candidate is as the next cell after a history, or after each of many.

        Args:
            history: cell tokens, oldest first, without SOT; may be empty; or a list of these.
            candidates: cell tokens, at least one; or a list of these, one for each history.

        Raises:
            DataError: the lists do not fit together.
            TeacherError: what the teacher refuses (an unknown cell, a history beyond its window), or why it failed.
        """
        if len(candidates) and np.ndim(candidates[0]) == 0:
            return self._scores([history], [candidates])[0]
        return self._scores(history, candidates)

    def close(self) -> None:
        """Gives up what is under way and frees the connection."""
        self._client.close()

    def _scores(self, histories: Sequence[Integers], candidates: Sequence[Integers]) -> list[TeacherScore]:
        if len(histories) != len(candidates):
            raise DataError(f"{len(histories)} histories and {len(candidates)} lists of candidates: give one each")
        if any(not len(row) for row in candidates):
            raise DataError("a history has no candidates; give at least one")
        lengths = np.array([len(row) for row in candidates], np.int64)
        if not len(lengths):
            return []
        flat = self._client.submit(_query(histories, candidates)).result().log_probs.astype(np.float64)
        return [TeacherScore(row) for row in np.split(flat, ragged.offsets(lengths)[1:-1])]


def _query(histories: Sequence[Integers], candidates: Sequence[Integers]) -> ScoreQuery:
    tokens, lengths = _joined(histories)
    return ScoreQuery(HistoryMode.WINDOW, tokens, lengths, *_joined(candidates))


def _joined(rows: Sequence[Integers]) -> tuple[Int32, Int32]:
    """Rows back to back, and their lengths."""
    try:
        parts = [np.asarray(row, np.int32) for row in rows]
    except (ValueError, TypeError, OverflowError):
        raise DataError("cells are whole numbers of 31 bits") from None
    return np.concatenate([np.empty(0, np.int32), *parts]), np.array([len(row) for row in parts], np.int32)
