"""The peers' rows and adapters, without servers."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import client, environments, rows
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.wire import decode_query

PACKED = np.array([[2, 5, 6, 0, 0, 8, -1, -1], [4, 1, 2, 3, 4, 9, 7, 8]], np.int32)
SCORES = np.array([[0, 0, 0], [-1, -2, -0.5]], np.float16)


def test_our_request_is_the_same_question_without_padding() -> None:
    message = client.Ours.__new__(client.Ours)
    message._numbers = iter([3])  # type: ignore[assignment]
    query = decode_query(pb.ScoreRequest.FromString(message.encode(PACKED)))
    assert query.history_tokens.tolist() == [5, 6, 1, 2, 3, 4]
    assert query.history_lengths.tolist() == [2, 4]
    assert query.candidate_tokens.tolist() == [8, 9, 7, 8]
    answer = pb.ScoreResponse(log_probs=SCORES[PACKED[:, 5:] >= 0].tobytes())
    assert np.array_equal(message.decode(answer.SerializeToString(), PACKED), SCORES)


def test_a_grant_alone_is_not_an_answer() -> None:
    assert not client._answers(pb.StreamScoreResponse(credit=5).SerializeToString())
    assert client._answers(pb.StreamScoreResponse(request_id=1, credit=5).SerializeToString())


def test_bytes_json_and_base64_carry_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rows.WIDTH, str(PACKED.shape[1]))
    assert np.array_equal(rows.from_bytes(client.Mosec(1).encode(PACKED)), PACKED)
    assert np.array_equal(
        rows.from_bytes(base64.b64decode(json.loads(client.LitServe(1).encode(PACKED))["rows"])), PACKED
    )
    path, body = client.BentoML(1).encode(PACKED)
    assert (path, json.loads(body)["rows"]) == ("/score_2", PACKED.tolist())
    assert np.array_equal(client.Mosec(1).decode(SCORES.tobytes(), PACKED), SCORES)
    assert np.array_equal(client.BentoML(1).decode(json.dumps(SCORES.tolist()).encode(), PACKED), SCORES)


def test_a_peer_that_is_not_installed_is_not_found(tmp_path: Path) -> None:
    missing = dataclasses.replace(environments.PEERS[0], package="no-such-package-here", name="none")
    assert environments.find(missing, tmp_path) is None


def test_an_installed_package_is_found_with_its_version(tmp_path: Path) -> None:
    found = environments.find(dataclasses.replace(environments.PEERS[0], package="numpy"), tmp_path)
    assert found is not None
    assert found[1] == np.__version__
