"""`query`: asks a running server one question and prints the answer as a line of JSON."""

from __future__ import annotations

import json

import numpy as np

from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import HistoryMode, ScoreQuery, decode_reply, encode_query
from teacher_server.client.config import QueryConfig
from teacher_server.client.connect import dialled, patiently


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
    request = encode_query(query, request_id=1)

    def ask() -> pb.ScoreResponse:
        with dialled(settings.address, settings.channel) as (teacher, metadata):
            response: pb.ScoreResponse = teacher.Score(request, timeout=settings.timeout, metadata=metadata)
            return response

    reply = decode_reply(patiently(ask, settings.wait), query, request)
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
