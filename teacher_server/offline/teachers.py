"""Who answers: a teacher file that is loaded here, or a running server."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import grpc
import numpy as np

from shared import wire
from shared.arrays import Float16
from shared.errors import CompatibilityError, TeacherError, from_status
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.vocab import Tokeniser
from shared.wire import ScoreQuery, decode_reply, encode_query
from teacher_server import teachers
from teacher_server.client.connect import dialled
from teacher_server.offline.config import AnswerConfig

POSITIONS_AT_ONCE, CANDIDATES_AT_ONCE = 8192, 2**17
"""Of a query: enough to compute well, few enough that the bar moves."""
BATCH_TOKENS = 32768
"""Padded tokens that are computed at once."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
"""Before a request is tried again."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A teacher to ask.

    Attributes:
        place: where it is, for people.
        revision: of its weights.
        tokeniser: its grid and vocabulary.
        max_window: cells that it can see after SOT.
        compute_dtype, device: how it computes.
        positions, candidates: the most of one query.
        ask: the log-probabilities of a query's candidates, float16 [K]; raises `TeacherError`.
    """

    place: str
    revision: str
    tokeniser: Tokeniser
    max_window: int
    compute_dtype: str
    device: str
    positions: int
    candidates: int
    ask: Callable[[ScoreQuery], Float16]


@contextlib.contextmanager
def opened(settings: AnswerConfig) -> Iterator[Opened]:
    """The teacher of the settings, while the block runs.

    Raises:
        FileFormatError: the teacher file cannot be read.
        TeacherError: the server does not answer.
    """
    if settings.teacher is not None:
        yield _loaded(settings)
        return
    assert settings.address is not None  # the schema demands one of the two
    with dialled(settings.address, settings.channel) as (stub, metadata):
        served = wire.decode_info(stub.GetTeacher(pb.GetTeacherRequest(), timeout=settings.timeout, metadata=metadata))

        def ask_once(query: ScoreQuery) -> Float16:
            request = encode_query(query, request_id=1)
            try:
                response = stub.Score(request, timeout=settings.timeout, metadata=metadata)
            except grpc.RpcError as error:
                raise from_status(error.code().name, f"{settings.address}: {error.details()}") from None
            reply = decode_reply(response, query, request)
            if reply.weights_revision != served.weights_revision:
                raise CompatibilityError(
                    f"the teacher at {settings.address} changed its weights meanwhile "
                    f"({served.weights_revision} != {reply.weights_revision}); start again"
                )
            return reply.log_probs

        yield Opened(
            place=settings.address,
            revision=served.weights_revision,
            tokeniser=served.tokeniser,
            max_window=served.limits.max_window,
            compute_dtype=served.compute_dtype,
            device=served.device,
            positions=min(POSITIONS_AT_ONCE, served.limits.max_request_positions),
            candidates=min(CANDIDATES_AT_ONCE, served.limits.max_request_candidates),
            ask=lambda query: retried(lambda: ask_once(query), settings.retry_seconds),
        )


def retried(ask: Callable[[], Float16], seconds: float) -> Float16:
    """What `ask` gives; it is tried again for so long while that may help; raises the last `TeacherError`."""
    deadline, pause = time.monotonic() + seconds, FIRST_PAUSE_SECONDS
    while True:
        try:
            return ask()
        except TeacherError as error:
            if not error.retryable or time.monotonic() + pause > deadline:
                raise
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


def _loaded(settings: AnswerConfig) -> Opened:
    from teacher_server.answers.table import AnswerTable  # numba takes seconds to import

    assert settings.teacher is not None
    scorer = teachers.load(settings.teacher, settings.engine)
    served = scorer.served
    scorer.warm_up()
    table = AnswerTable(0, scorer.costs, served.header.tokeniser.vocabulary.sot)

    def ask(query: ScoreQuery) -> Float16:
        """Rows in batches, as the daemon computes them: an answer's bits do not depend on its batch."""
        pending, slots = table.ask(query), np.empty(query.positions, np.int64)
        while not pending.is_answered:
            count, _ = table.take(pending, BATCH_TOKENS, slots, 0)
            taken = slots[:count].copy()
            table.fill(taken, scorer.score(scorer.assemble(table.batch(taken))))
            table.collect(pending)
        return pending.log_probs

    return Opened(
        place=str(settings.teacher),
        revision=served.header.revision,
        tokeniser=served.header.tokeniser,
        max_window=served.longest,
        compute_dtype=served.compute_dtype,
        device=served.device,
        positions=POSITIONS_AT_ONCE,
        candidates=CANDIDATES_AT_ONCE,
        ask=ask,
    )
