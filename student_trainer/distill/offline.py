"""A teacher whose answers are in a file, as `teacher-server answer` writes it: no daemon, the same bits.

    query -> rows -> look-up, compiled -> reply

Answers depend on the query alone, so whoever trains on them cannot tell them from a daemon's.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from shared import answers_file, ragged
from shared.answers_file import Answers, AnswersHeader
from shared.errors import CompatibilityError, ReportableError
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, ScoreReply
from student_trainer.distill import kernels
from student_trainer.distill.config import DistillConfig
from student_trainer.distill.kernels import AskedRows, FileRows
from student_trainer.distill.teacher import FailureStats

AGAIN = "write them again with `teacher-server answer`"


class FileTeacher:
    """Answers out of a file; see `Teacher`.

    Attributes:
        path: of the file.
        header: what it says of itself.
    """

    def __init__(self, path: Path) -> None:
        """Opens, checks and indexes a file.

        Raises:
            FileFormatError: it is missing, damaged or no answers file.
        """
        self.header, answers = answers_file.read(path)
        self.revision, self.failure_stats = self.header.revision, FailureStats()
        self.path, self._rows = path, _indexed(answers, self.header.is_of_trips)

    def submit(self, query: ScoreQuery) -> Future[ScoreReply]:
        """See `Teacher`; the future has ended already."""
        future: Future[ScoreReply] = Future()
        try:
            future.set_result(self._answer(query))
        except ReportableError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """See `Teacher`; the file is closed when nobody reads an answer any more."""

    def _answer(self, query: ScoreQuery) -> ScoreReply:
        """The reply to a query.

        Raises:
            CompatibilityError: the file does not hold all of it.
        """
        if query.include_candidate_mass:
            raise CompatibilityError(f"the answers in {self.path} have no candidate_mass; ask a running teacher")
        asked = _asked(query)
        log_probs = np.empty(len(query.candidate_tokens), np.float16)
        missing = int(kernels.look_up(self._rows, asked, log_probs.view(np.uint16)))
        if missing >= 0:
            raise CompatibilityError(self._explain(asked, missing))
        return ScoreReply(log_probs, None, self.revision, queue_us=0, compute_us=0)

    def _explain(self, asked: AskedRows, row: int) -> str:
        header, tokens = self.header, int(asked.token_count[row])
        first, candidates = int(asked.first_token[row]), np.diff(asked.candidate_at)[asked.first_position[row]]
        cells = " ".join(map(str, asked.tokens[first : first + min(tokens, 8)])) + (" ..." if tokens > 8 else "")
        sampled = f" and of the sampled trips in {', '.join(header.sampled)}" if header.sampled else ""
        return (
            f"the answers in {self.path} lack a position: history {cells} ({tokens} cells), {candidates} candidates. "
            f"They are those of the training and validation trips of store {header.store[:12]}{sampled}, "
            f"window {_told(header.windows)}, with all successors as candidates. If trips were sampled, {AGAIN} and "
            "sampled=DIR; otherwise use the same trips, window and candidates, or a running teacher"
        )


def check_answers(
    header: AnswersHeader, store: Store, distill: DistillConfig, candidate_top_k: int, max_steps: int, path: Path
) -> None:
    """Refuses answers that are not those of a run's questions.

    Args:
        header: of the file.
        store: that is trained on.
        distill: settings of the distillation.
        candidate_top_k, max_steps: settings of the batches.
        path: of the file, for people.

    Raises:
        CompatibilityError: naming every value that differs, and how to mend it.
    """
    store.check_vocabulary(header.tokeniser, f"of the answers in {path}")
    found = []
    if header.store != store.fingerprint:
        found.append(f"they were made for store {header.store[:12]}, this is {store.fingerprint[:12]} ({store.path})")
    if distill.window not in header.windows:
        found.append(f"distill.window is {distill.window}, theirs {_told(header.windows)}")
    if header.max_steps != max_steps:
        found.append(f"batch.max_steps is {max_steps}, theirs {header.max_steps}")
    most = int(np.diff(store.network("successor_offsets")).max(initial=0))
    if 0 < candidate_top_k < most:
        found.append(
            f"batch.candidate_top_k {candidate_top_k} would leave out candidates by their distance to the destination, "
            f"theirs are all successors; set it to 0, or to {most} or more"
        )
    if found:
        raise CompatibilityError(
            f"the answers in {path} are not those of this run: {'; '.join(found)}. Change the settings, {AGAIN} "
            "(--data, windows=, max_steps=), or use a running teacher"
        )


def _told(windows: Sequence[int]) -> str:
    return ", ".join(map(str, windows))


def _indexed(answers: Answers, are_trips: bool) -> FileRows:
    scored = answers.history_lengths if are_trips else np.ones(len(answers), np.int64)
    choice_at = ragged.offsets(scored)
    rows = FileRows(
        tokens=answers.history_tokens,
        token_at=ragged.offsets(answers.history_lengths),
        choices=answers.choices,
        choice_at=choice_at,
        list_tokens=answers.list_tokens,
        list_at=ragged.offsets(answers.list_lengths),
        log_probs=answers.log_probs.view(np.uint16),
        answer_at=ragged.offsets(answers.list_lengths[answers.choices])[choice_at],
        heads=np.zeros(1 << (2 * len(answers)).bit_length(), np.int64),
    )
    kernels.index(rows)
    return rows


def _asked(query: ScoreQuery) -> AskedRows:
    """A query's rows: a window each, or trips with the whole history."""
    lengths = query.history_lengths.astype(np.int64)
    starts = ragged.offsets(lengths)[:-1]
    if query.mode is HistoryMode.SEQUENCE and query.window:
        lengths = np.minimum(ragged.positions(lengths) + 1, query.window)
        starts = np.arange(len(lengths)) + 1 - lengths
    are_trips = query.mode is HistoryMode.SEQUENCE and not query.window
    scored = lengths if are_trips else np.ones(len(lengths), np.int64)
    return AskedRows(
        tokens=query.history_tokens,
        first_token=starts,
        token_count=lengths,
        first_position=ragged.offsets(scored)[:-1],
        position_count=scored,
        candidates=query.candidate_tokens,
        candidate_at=ragged.offsets(query.candidate_lengths),
    )
