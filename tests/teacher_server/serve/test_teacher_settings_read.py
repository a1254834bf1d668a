"""Every setting of the teacher's jobs is read when the job runs."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from conftest import TeacherStarter, write_tiny_teacher
from prometheus_client import CollectorRegistry
from support.certificates import Authority, reads_of_a_channel
from support.random_city import write_random_store
from support.setting_reads import Setting, reads_all_of, reads_of_the_log, reads_of_tracing, recorded_reads, settings_of
from support.teacher_files import circular_trips, write_checkpoint, write_store

from shared import wire
from shared.channel import Tokens
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery
from teacher_server.__main__ import JOBS
from teacher_server.client import info, query
from teacher_server.client.config import InfoConfig, QueryConfig
from teacher_server.lmtad import export
from teacher_server.lmtad.config import ExportConfig
from teacher_server.metrics import Metrics
from teacher_server.offline import run as offline
from teacher_server.offline.config import AnswerConfig
from teacher_server.pretrain import run as pretraining
from teacher_server.pretrain.config import PretrainConfig
from teacher_server.serve import run, security
from teacher_server.serve.config import ServeConfig

PATIENCE = 60


@pytest.fixture(autouse=True)
def own_threads() -> Iterator[None]:
    """As many as before afterwards."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.integration
@reads_all_of("answer")
def test_answer_reads_all(tmp_path: Path, running_teacher: TeacherStarter) -> None:
    """The engine's settings and the channel's are those of `serve` and `info`."""
    store = write_random_store(tmp_path / "random", trips=10)
    write_tiny_teacher(tmp_path / "answering", tokeniser=store.tokeniser)
    places = {"data": store.path, "out": tmp_path / "answers"}
    with running_teacher(tmp_path / "answering") as server, recorded_reads() as reads:
        offline.run(AnswerConfig.model_validate(places | {"teacher": tmp_path / "answering"}))
        offline.run(AnswerConfig.model_validate(places | {"address": server.address, "overwrite": True}))
    assert {setting for setting in settings_of(AnswerConfig) if setting[0] == "AnswerConfig"} <= reads


@reads_all_of("export")
def test_export_reads_all(tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "c.pt", 15)
    shape = {"grid_rows": 3, "grid_cols": 4, "bounds": [10.0, 20.0, 10.25, 20.35], "cell_size": 0.1}
    (tmp_path / "teacher").touch()
    places = {"checkpoint": checkpoint, "out": tmp_path / "teacher", "overwrite": True}
    settings = ExportConfig.model_validate(places | shape)
    with recorded_reads() as reads:
        export.run(settings)
    assert settings_of(ExportConfig) <= reads


@reads_all_of("pretrain")
def test_pretrain_reads_all(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", {"train": circular_trips(20, 0), "val": circular_trips(5, 1)})
    (tmp_path / "teacher").touch()
    small = {"n_layer": 1, "n_head": 2, "n_embd": 16, "epochs": 1, "device": "cpu", "threads": 1, "overwrite": True}
    settings = PretrainConfig.model_validate({"data": store, "out": tmp_path / "teacher", **small})
    with recorded_reads() as reads:
        pretraining.run(settings)
    assert settings_of(PretrainConfig) <= reads


def ask(address: str, teacher: Path) -> None:
    """Everything that a server can be asked: by the jobs, and over a stream."""
    info.run(InfoConfig(address=address))
    info.run(InfoConfig(teacher=teacher))
    query.run(QueryConfig(address=address, history=(1, 2), candidates=(3, 4), candidate_mass=True))
    one = np.ones(1, np.int32)
    request = wire.encode_query(ScoreQuery(HistoryMode.WINDOW, one, one, one, one), 1)
    with grpc.insecure_channel(address) as channel:
        (answer,) = rpc.TeacherServiceStub(channel).StreamScore(
            iter([pb.StreamScoreRequest(request=request)]), timeout=PATIENCE
        )
    assert answer.WhichOneof("result") == "response"


def reads_of_a_served_teacher(settings: ServeConfig, monkeypatch: pytest.MonkeyPatch) -> set[Setting]:
    """Serves here until a thread has asked everything and sent SIGTERM."""
    ready: queue.Queue[str] = queue.Queue()
    failures: list[BaseException] = []

    def visit() -> None:
        address = ready.get(timeout=PATIENCE)
        try:
            ask(address, settings.teacher)
        except BaseException as error:
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    def announce(address: Any, *_: Any) -> None:
        ready.put(str(address))

    monkeypatch.setattr(run, "_announce", announce)
    visitor = threading.Thread(target=visit, daemon=True)
    with recorded_reads() as reads:
        visitor.start()
        assert run.serve(settings) == 0
        visitor.join()
    assert not failures
    return reads


def reads_of_a_secured_port(directory: Path, teacher: Path) -> set[Setting]:
    authority = Authority(directory / "server")
    certificate, key = authority.issue("server")
    tls = {"certificate": certificate, "key": key, "client_ca": authority.ca}
    secured = ServeConfig.model_validate({"teacher": teacher, "tls": tls})
    with recorded_reads() as reads:
        assert security.server_credentials(secured.tls, Metrics(CollectorRegistry())) is not None
        security.check(ServeConfig(teacher=teacher, listen="0.0.0.0:0", insecure=True), Tokens(None, {}))
    return reads


def reads_of_a_socket(path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch) -> set[Setting]:
    settings = ServeConfig(teacher=teacher, listen=f"unix:{path}", socket_mode="600", metrics_listen="off")
    return reads_of_a_served_teacher(settings, monkeypatch)


@pytest.mark.integration
@reads_all_of("serve", "info", "query")
def test_serve_info_and_query_read_all(tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeConfig.model_validate(
        {
            "teacher": tiny_teacher,
            "listen": "127.0.0.1:0",
            "metrics_listen": "127.0.0.1:0",
            "cache": {"file": tmp_path / "answers"},
        }
    )
    reads = reads_of_a_served_teacher(settings, monkeypatch)
    reads |= reads_of_a_socket(tmp_path / "socket", tiny_teacher, monkeypatch)
    reads |= reads_of_a_channel(tmp_path) | reads_of_a_secured_port(tmp_path, tiny_teacher)
    reads |= reads_of_the_log(next(job for job in JOBS if job.name == "serve"), settings) | reads_of_tracing()
    for schema in (ServeConfig, InfoConfig, QueryConfig):
        assert settings_of(schema) <= reads
