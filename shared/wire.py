"""The wire codec: ragged numpy arrays <-> protobuf, both directions.

Everything here is arithmetic on arrays; no value is visited in Python. Decoding
checks what needs no teacher (sizes, signs); the service checks tokens and limits.
An answer carries checksums of itself and of what was asked, which the asker compares.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import struct
import zlib

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from shared.arrays import Float16 as Float16
from shared.arrays import Int32
from shared.errors import CompatibilityError, Corrupted, FileFormatError, InternalError, InvalidRequest
from shared.grid import Grid
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.vocab import Tokeniser, Vocabulary


class HistoryMode(enum.Enum):
    """What a history row is; the values are those of the wire."""

    WINDOW = pb.HISTORY_MODE_WINDOW
    SEQUENCE = pb.HISTORY_MODE_SEQUENCE


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreQuery:
    """One request. Shapes: R rows, H history tokens, P scored positions, K candidates.

    Attributes:
        mode: WINDOW scores the cell after each row, SEQUENCE the cell after each token.
        history_tokens: int32 [H], rows back to back, without SOT.
        history_lengths: int32 [R].
        candidate_tokens: int32 [K], positions back to back.
        candidate_lengths: int32 [P]; P = R (WINDOW) or H (SEQUENCE).
        window: SEQUENCE only: tokens of context after SOT, 0 for the whole history.
        include_candidate_mass: whether to ask for the teacher's mass of the candidates.
    """

    mode: HistoryMode
    history_tokens: Int32
    history_lengths: Int32
    candidate_tokens: Int32
    candidate_lengths: Int32
    window: int = 0
    include_candidate_mass: bool = False

    @property
    def positions(self) -> int:
        """Number of scored positions, P."""
        return len(self.candidate_lengths)


@dataclasses.dataclass(frozen=True, eq=False)
class ScoreReply:
    """The answer to a `ScoreQuery`.

    Attributes:
        log_probs: float16 [K], log-probabilities renormalised over each position's candidates.
        candidate_mass: float16 [P] or None.
        weights_revision: the weights that answered.
        queue_us, compute_us: microseconds spent waiting and computing at the teacher.
    """

    log_probs: Float16
    candidate_mass: Float16 | None
    weights_revision: str
    queue_us: int
    compute_us: int


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a teacher accepts; see `Limits` in teacher.proto."""

    max_window: int
    max_message_bytes: int
    max_queued_positions: int
    max_request_positions: int
    max_request_candidates: int


@dataclasses.dataclass(frozen=True)
class TeacherInfo:
    """What a teacher is; see `GetTeacherResponse` in teacher.proto."""

    weights_revision: str
    tokeniser: Tokeniser
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    parameters: int
    limits: Limits
    compute_dtype: str
    device: str
    server_version: str


def encode_query(query: ScoreQuery, request_id: int) -> pb.ScoreRequest:
    """A `ScoreQuery` as a message."""
    return pb.ScoreRequest(
        request_id=request_id,
        mode=query.mode.value,
        history_tokens=query.history_tokens.astype("<i4", copy=False).tobytes(),
        history_lengths=query.history_lengths.astype("<i4", copy=False).tobytes(),
        candidate_tokens=query.candidate_tokens.astype("<i4", copy=False).tobytes(),
        candidate_lengths=query.candidate_lengths.astype("<i4", copy=False).tobytes(),
        window=query.window,
        include_candidate_mass=query.include_candidate_mass,
    )


def decode_query(message: pb.ScoreRequest) -> ScoreQuery:
    """A message as a `ScoreQuery` whose arrays fit together.

    Raises:
        InvalidRequest: naming the field, the index and the limit.
    """
    try:
        mode = HistoryMode(message.mode)
    except ValueError:
        raise InvalidRequest(f"mode: {message.mode} is not WINDOW (1) or SEQUENCE (2)") from None
    query = ScoreQuery(
        mode=mode,
        history_tokens=_int32("history_tokens", message.history_tokens),
        history_lengths=_int32("history_lengths", message.history_lengths),
        candidate_tokens=_int32("candidate_tokens", message.candidate_tokens),
        candidate_lengths=_int32("candidate_lengths", message.candidate_lengths),
        window=message.window,
        include_candidate_mass=message.include_candidate_mass,
    )
    if query.window < 0:
        raise InvalidRequest(f"window: {query.window} is negative; use 0 for the whole history")
    if mode is HistoryMode.WINDOW and query.window:
        raise InvalidRequest(f"window: {query.window} is set, but in mode WINDOW the rows are the windows; leave it 0")
    _check_lengths("history", query.history_lengths, len(query.history_tokens))
    _check_lengths("candidate", query.candidate_lengths, len(query.candidate_tokens))
    expected = len(query.history_lengths) if mode is HistoryMode.WINDOW else len(query.history_tokens)
    if query.positions != expected:
        per = "row" if mode is HistoryMode.WINDOW else "history token"
        raise InvalidRequest(
            f"candidate_lengths: {query.positions} entries, expected {expected} (one a {per} in mode {mode.name})"
        )
    return query


def encode_reply(reply: ScoreReply, request: pb.ScoreRequest) -> pb.ScoreResponse:
    """A `ScoreReply` as a message, the answer to a request."""
    mass = reply.candidate_mass
    message = pb.ScoreResponse(
        request_id=request.request_id,
        log_probs=reply.log_probs.astype("<f2", copy=False).tobytes(),
        candidate_mass=b"" if mass is None else mass.astype("<f2", copy=False).tobytes(),
        weights_revision=reply.weights_revision,
        queue_us=reply.queue_us,
        compute_us=reply.compute_us,
        request_checksum=checksum(request),
    )
    message.checksum = checksum(message)
    return message


def decode_reply(message: pb.ScoreResponse, query: ScoreQuery, request: pb.ScoreRequest | None = None) -> ScoreReply:
    """A message as the answer to `query`.

    Args:
        message: the answer.
        query: what was asked.
        request: the message that asked it, as it was sent; None: whether that arrived whole is not checked.

    Raises:
        Corrupted: its checksum is missing or that of another message, or it answers what the request was not.
        InternalError: the answer is to another request, does not have the shape of the
            question, or holds values that are no log-probabilities or probabilities.
    """
    _compare_checksum(message, "the answer")
    if request is not None:
        if message.request_id != request.request_id:
            raise InternalError(f"the teacher answered request {message.request_id}, asked was {request.request_id}")
        if message.request_checksum != checksum(request):
            raise Corrupted("the request was damaged on its way: its checksum is another")
    log_probs = np.frombuffer(message.log_probs, "<f2") if len(message.log_probs) % 2 == 0 else None
    mass = np.frombuffer(message.candidate_mass, "<f2") if len(message.candidate_mass) % 2 == 0 else None
    if log_probs is None or len(log_probs) != len(query.candidate_tokens):
        raise InternalError(
            f"the teacher answered {len(message.log_probs)} bytes of log_probs for "
            f"{len(query.candidate_tokens)} candidates (2 bytes each expected)"
        )
    if not bool(np.all(log_probs <= 0)):  # also catches NaN
        raise InternalError("the teacher answered log_probs that are NaN or above 0")
    expected_mass = query.positions if query.include_candidate_mass else 0
    if mass is None or len(mass) != expected_mass:
        raise InternalError(
            f"the teacher answered {len(message.candidate_mass)} bytes of candidate_mass, expected {2 * expected_mass}"
        )
    if not bool(np.all((mass >= 0) & (mass <= 1))):
        raise InternalError("the teacher answered candidate_mass that is NaN or outside 0 to 1")
    return ScoreReply(
        log_probs=log_probs,
        candidate_mass=mass if query.include_candidate_mass else None,
        weights_revision=message.weights_revision,
        queue_us=message.queue_us,
        compute_us=message.compute_us,
    )


def encode_info(info: TeacherInfo) -> pb.GetTeacherResponse:
    """A `TeacherInfo` as a message."""
    vocabulary, grid = info.tokeniser.vocabulary, info.tokeniser.grid
    occupied = vocabulary.occupied
    message = pb.GetTeacherResponse(
        weights_revision=info.weights_revision,
        fingerprint=info.tokeniser.fingerprint,
        vocabulary=pb.Vocabulary(
            cells=vocabulary.cells,
            size=vocabulary.size,
            pad=vocabulary.pad,
            eot=vocabulary.eot,
            sot=vocabulary.sot,
            occupied_cells=b"" if occupied is None else occupied.astype("<i4").tobytes(),
        ),
        grid=None if grid is None else pb.Grid(**grid.model_dump()),
        architecture=pb.Architecture(
            n_layer=info.n_layer,
            n_head=info.n_head,
            n_embd=info.n_embd,
            block_size=info.block_size,
            parameters=info.parameters,
        ),
        limits=pb.Limits(**dataclasses.asdict(info.limits)),
        compute_dtype=info.compute_dtype,
        device=info.device,
        server_version=info.server_version,
    )
    message.checksum = checksum(message)
    return message


def decode_info(message: pb.GetTeacherResponse) -> TeacherInfo:
    """A message as a `TeacherInfo`.

    Raises:
        Corrupted: its checksum is missing, or that of another message.
        CompatibilityError: the vocabulary or grid is malformed.
    """
    _compare_checksum(message, "the teacher's description")
    v, a, m = message.vocabulary, message.architecture, message.limits
    try:
        occupied = np.frombuffer(v.occupied_cells, "<i4") if v.occupied_cells else None
        grid = None
        if message.HasField("grid"):
            grid = Grid.model_validate({name: getattr(message.grid, name) for name in Grid.model_fields})
        tokeniser = Tokeniser(Vocabulary(v.cells, v.pad, v.eot, v.sot, occupied), grid)
    except (ValueError, FileFormatError) as error:
        raise CompatibilityError(f"the teacher describes itself wrongly: {' '.join(str(error).split())}") from None
    return TeacherInfo(
        weights_revision=message.weights_revision,
        tokeniser=tokeniser,
        n_layer=a.n_layer,
        n_head=a.n_head,
        n_embd=a.n_embd,
        block_size=a.block_size,
        parameters=a.parameters,
        limits=Limits(**{field.name: getattr(m, field.name) for field in dataclasses.fields(Limits)}),
        compute_dtype=message.compute_dtype,
        device=message.device,
        server_version=message.server_version,
    )


def checksum(message: Message, start: int = 0) -> int:
    """CRC-32 of all fields of a message but its own `checksum`; teacher.proto says how.

    Args:
        message: one without repeated fields.
        start: CRC-32 of what comes before it.
    """
    crc = start
    for name in _names(message.DESCRIPTOR):
        if name == "checksum":
            continue
        value = getattr(message, name)
        if isinstance(value, Message):
            crc = checksum(value, crc) if message.HasField(name) else crc
        elif isinstance(value, str | bytes):
            content = value.encode() if isinstance(value, str) else value
            crc = zlib.crc32(content, zlib.crc32(len(content).to_bytes(8, "little"), crc))
        elif isinstance(value, float):
            crc = zlib.crc32(struct.pack("<d", value), crc)
        else:
            crc = zlib.crc32((int(value) % 2**64).to_bytes(8, "little"), crc)
    return crc


@functools.cache
def _names(descriptor: Descriptor) -> list[str]:
    """Fields of a message in the order of their numbers."""
    fields: list[FieldDescriptor] = sorted(descriptor.fields, key=lambda field: field.number)
    return [field.name for field in fields]


def _compare_checksum(message: pb.ScoreResponse | pb.GetTeacherResponse, what: str) -> None:
    if not message.HasField("checksum"):
        raise Corrupted(f"{what} has no checksum: damaged on its way, or sent by software of another version")
    if message.checksum != checksum(message):
        raise Corrupted(f"{what} was damaged on its way: its checksum differs")


def _int32(name: str, data: bytes) -> Int32:
    if len(data) % 4:
        raise InvalidRequest(f"{name}: {len(data)} bytes, expected a multiple of 4 (int32, little-endian)")
    return np.frombuffer(data, "<i4")


def _check_lengths(name: str, lengths: Int32, values: int) -> None:
    if len(lengths) and int(lengths.view(np.uint32).max()) > 0x7FFFFFFF:
        index = int(np.argmax(lengths < 0))
        raise InvalidRequest(f"{name}_lengths[{index}]: {lengths[index]} is negative")
    total = int(lengths.sum(dtype=np.int64))
    if total != values:
        raise InvalidRequest(f"{name}_lengths: they add up to {total}, but {name}_tokens has {values} entries")
