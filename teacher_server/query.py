"""`query`: asks a running server one question and prints the answer as a line of JSON."""

from __future__ import annotations

import json

import grpc
import numpy as np

from shared.errors import from_status
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery, decode_reply, encode_query
from teacher_server.config import QueryConfig


def run(settings: QueryConfig) -> None:
    """Prints probabilities, log_probs, weights_revision, queue_us, compute_us and, if wanted, candidate_mass.

    Raises:
        TeacherError: the server refused the question or did not answer.
    """
    query = ScoreQuery(
        mode=HistoryMode.WINDOW,
        history_tokens=np.array(settings.history, np.int32),
        history_lengths=np.array([len(settings.history)], np.int32),
        candidate_tokens=np.array(settings.candidates, np.int32),
        candidate_lengths=np.array([len(settings.candidates)], np.int32),
        include_candidate_mass=settings.candidate_mass,
    )
    reply = decode_reply(_ask(settings.address, encode_query(query, request_id=1), settings.timeout), query)
    log_probs = reply.log_probs.astype(np.float64)
    answer = {
        "probabilities": np.exp(log_probs).tolist(),
        "log_probs": log_probs.tolist(),
        "weights_revision": reply.weights_revision,
        "queue_us": reply.queue_us,
        "compute_us": reply.compute_us,
    }
    if reply.candidate_mass is not None:
        answer["candidate_mass"] = float(reply.candidate_mass[0])
    print(json.dumps(answer))


def _ask(address: str, request: pb.ScoreRequest, timeout: float) -> pb.ScoreResponse:
    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            response: pb.ScoreResponse = rpc.TeacherServiceStub(channel).Score(request, timeout=timeout)
        except grpc.RpcError as error:
            raise from_status(error.code().name, f"{address}: {error.details()}") from None
    return response
