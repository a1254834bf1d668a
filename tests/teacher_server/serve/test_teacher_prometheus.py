"""A real Prometheus scrapes the daemon, and knows what was sent."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import TeacherStarter

from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery

pytestmark = pytest.mark.integration

PATIENCE = 60
CONFIG = """
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: teacher
    static_configs: [{{targets: ["{target}"]}}]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextlib.contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """Runs Prometheus in `folder`, scraping `target` every second; yields its address."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("needs the prometheus binary (Debian: apt-get install prometheus)")
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIG.format(target=target))
    address = f"127.0.0.1:{free_port()}"
    command = [binary, f"--config.file={configuration}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log)
        try:
            yield address
        finally:
            process.terminate()
            process.wait()


def ask(address: str, query: str) -> float | None:
    """The sum of an instant query, or None where Prometheus has no sample yet."""
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": f"sum({query})"})
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            result = json.load(answer)["data"]["result"]
    except OSError:  # not listening yet
        return None
    return float(result[0]["value"][1]) if result else None


def wait_for(address: str, query: str, expected: float) -> None:
    """Scrapes come every second; the first that shows the value ends the wait."""
    end = time.monotonic() + PATIENCE
    while (found := ask(address, query)) != expected:
        assert time.monotonic() < end, f"{query} is {found}, expected {expected}"
        time.sleep(0.2)


def test_prometheus_knows_what_was_sent(tmp_path: Path, tiny_teacher: Path, running_teacher: TeacherStarter) -> None:
    query = ScoreQuery(
        HistoryMode.WINDOW,
        np.array([1, 2, 3], np.int32),
        np.array([1, 2], np.int32),
        np.array([4, 5, 6], np.int32),
        np.array([2, 1], np.int32),
    )
    with (
        running_teacher(tiny_teacher, "cache.mib=0") as server,  # every request is computed
        prometheus(tmp_path, str(server.metrics)) as address,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = rpc.TeacherServiceStub(channel)
        for i in range(17):
            stub.Score(wire.encode_query(query, i))
        with pytest.raises(grpc.RpcError):
            stub.Score(wire.encode_query(dataclasses.replace(query, candidate_tokens=query.candidate_tokens * 99), 1))

        wait_for(address, 'teacher_requests_total{method="Score",code="OK"}', 17)
        wait_for(address, 'teacher_requests_total{method="Score",code="INVALID_ARGUMENT"}', 1)
        wait_for(address, 'teacher_rejected_total{reason="invalid"}', 1)
        wait_for(address, "teacher_scored_positions_total", 34)
        wait_for(address, "teacher_batch_positions_sum", 34)
        wait_for(address, "teacher_batches_total", 17)  # a lone caller's requests have a batch each
        wait_for(address, 'teacher_request_seconds_count{method="Score"}', 18)
        wait_for(address, "teacher_in_flight_requests", 0)
        wait_for(address, f'teacher_model_info{{revision="{server.ready["weights_revision"]}"}}', 1)
        wait_for(address, 'up{job="teacher"}', 1)
