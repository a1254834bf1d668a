"""Traces as a collector gets them: a trainer's step with its requests, and what these were at the teacher."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from conftest import REPOSITORY, RunningTeacher, start_teacher, write_tiny_teacher
from support.collector import Collector, Received, collecting
from support.random_city import write_random_store

from shared import cli, tracing, wire
from shared.errors import ConfigError
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.store import Store
from shared.tracing import Tracer, TracingConfig
from shared.wire import HistoryMode, ScoreQuery
from student_trainer.__main__ import JOBS
from teacher_server.serve.spans import SERVICE

PATIENCE = 60
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as running:
        yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_random_store(tmp_path_factory.mktemp("random") / "store", trips=30)


@pytest.fixture
def teacher(store: Store, tmp_path: Path, collector: Collector) -> Iterator[RunningTeacher]:
    path = tmp_path / "teacher.safetensors"
    write_tiny_teacher(path, tokeniser=store.tokeniser)
    with start_teacher(path, f"tracing.endpoint={collector.endpoint}") as server:
        yield server


def ended(server: RunningTeacher) -> None:
    """Drains a teacher, which sends its last spans then."""
    server.process.terminate()
    assert server.process.wait(PATIENCE) == 0


def children(spans: list[Received], parent: Received) -> list[Received]:
    found = [span for span in spans if span.parent == parent.span]
    assert all(span.trace == parent.trace for span in found)
    return sorted(found, key=lambda span: span.began)


@pytest.mark.integration
@pytest.mark.parametrize("transport", ["stream", "unary"])
def test_a_step_and_its_requests_are_one_trace(
    store: Store, teacher: RunningTeacher, collector: Collector, tmp_path: Path, transport: str
) -> None:
    settings = [
        "model.road_id_dim=8", "model.road_attr_dim=2", "optim.epochs=1", "optim.batch_size=8", "optim.accumulation=2",
        "log.tensorboard=false", "runtime.threads=1", f"client.transport={transport}", "client.name=tracer",
        f"tracing.endpoint={collector.endpoint}",
        "distill.target=history",  # a fit would have asked everything before the first step
    ]  # fmt: skip
    place = ["--data", str(store.path), "--teacher", teacher.address, "--out", str(tmp_path / "run")]
    assert cli.main("student-trainer", "", JOBS, ["train", *place, *settings]) == 0
    ended(teacher)

    spans, method = collector.spans, "StreamScore" if transport == "stream" else "Score"
    steps = collector.named("train.step")
    assert sorted(step.attributes["step"] for step in steps) == list(range(len(steps))) and len(steps) >= 2
    assert len({step.trace for step in steps}) == len(steps) and not any(step.parent for step in steps)
    kinds: set[str] = set()
    for step in steps:
        prepare, update = children(spans, step)
        assert (prepare.name, update.name) == ("prepare", "update")
        assert step.began <= prepare.began <= prepare.ended <= update.began <= update.ended <= step.ended
        requests = children(spans, prepare)
        assert requests and all(request.name == "teacher.request" for request in requests)
        for request in requests:
            assert request.service == "student-trainer" and request.attributes["attempt"] == 1
            (served,) = children(spans, request)
            assert (served.service, served.name) == ("teacher-server", f"{SERVICE}/{method}")
            assert served.attributes["caller"] == "tracer"
            parts = children(spans, served)
            kinds |= {part.name for part in parts}
            assert {"queue", "encode"} <= {part.name for part in parts}
            for part in parts:
                assert request.began <= served.began and part.ended <= served.ended <= request.ended
                assert part.began <= part.ended
            (queue,) = [part for part in parts if part.name == "queue"]
            assert queue.attributes["positions"] == request.attributes["positions"]
            assert queue.attributes["batches"] == sum(part.name == "compute" for part in parts)
    assert kinds == {"queue", "assemble", "compute", "encode"}


def question() -> ScoreQuery:
    one = np.ones(1, np.int32)
    return ScoreQuery(HistoryMode.WINDOW, one, one, one, one)


@pytest.mark.integration
def test_a_caller_s_trace_goes_on(teacher: RunningTeacher, collector: Collector) -> None:
    """Of each request on a stream, else of the stream, of a call; one that is not recorded stays so."""
    calls = {
        "valid": f"00-{TRACE}-{SPAN}-01",
        "not recorded": f"00-{TRACE[::-1]}-{SPAN}-00",
        "of nobody": f"00-{'0' * 32}-{SPAN}-01",
        "nonsense": "00-x",
    }
    with grpc.insecure_channel(teacher.address) as channel:
        stub = rpc.TeacherServiceStub(channel)
        request = wire.encode_query(question(), 1)
        for text in calls.values():
            assert stub.Score(request, metadata=[("traceparent", text)]).request_id == 1
        messages = [
            pb.StreamScoreRequest(request=wire.encode_query(question(), 1), traceparent=f"00-{TRACE}-{SPAN[::-1]}-01"),
            pb.StreamScoreRequest(request=wire.encode_query(question(), 2)),
        ]
        assert len(list(stub.StreamScore(iter(messages), metadata=[("traceparent", calls["valid"])]))) == 2
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.Score(pb.ScoreRequest(window=-1), metadata=[("traceparent", calls["valid"])])
    ended(teacher)

    unary, streamed = collector.named(f"{SERVICE}/Score"), collector.named(f"{SERVICE}/StreamScore")
    assert sorted(span.parent for span in streamed) == sorted([SPAN, SPAN[::-1]])
    assert {span.trace for span in streamed} == {TRACE}
    of_ours = [span for span in unary if span.trace == TRACE]
    assert [span.parent for span in of_ours] == [SPAN, SPAN]
    assert sorted(span.error.partition(":")[0] for span in of_ours) == ["", "InvalidRequest"]
    begun_anew = [span for span in unary if not span.parent]
    assert len(begun_anew) == 2 and len({span.trace for span in begun_anew} | {TRACE}) == 3
    assert TRACE[::-1] not in {span.trace for span in collector.spans}


@pytest.mark.integration
def test_a_collector_that_is_away_harms_nobody(tiny_teacher: Path) -> None:
    with start_teacher(tiny_teacher, "tracing.endpoint=http://127.0.0.1:9") as server:
        with grpc.insecure_channel(server.address) as channel:
            stub = rpc.TeacherServiceStub(channel)
            for number in range(5):
                assert stub.Score(wire.encode_query(question(), number)).request_id == number
        ended(server)


def is_sampled(span: tracing.Span) -> bool:
    """As the last flag of its `traceparent` tells others."""
    return bool(int(span.traceparent[-2:], 16) & 1)


def test_the_share_decides_what_is_recorded(collector: Collector) -> None:
    def begin(tracer: Tracer | None) -> tracing.Span:
        assert tracer is not None
        return tracer.begin("work")

    with tracing.opened(TracingConfig(endpoint=collector.endpoint, share=0), "test") as tracer:
        span = begin(tracer)
        assert not span.is_recorded and not is_sampled(span)
        span.end()
    with tracing.opened(TracingConfig(endpoint=collector.endpoint), "test") as tracer:
        span = begin(tracer)
        assert span.is_recorded and is_sampled(span)
        with tracing.within(span), pytest.raises(ValueError, match="wrong"), tracing.part("part") as part_of_it:
            part_of_it.note(number=3)
            assert tracing.traceparent() == part_of_it.traceparent != span.traceparent
            raise ValueError("wrong")
        span.end()
    part, work = sorted(collector.spans, key=lambda found: found.name)
    assert (part.name, part.parent, part.error, part.attributes) == (
        "part", work.span, "ValueError: wrong", {"number": 3}
    )  # fmt: skip
    assert (work.name, work.trace, work.error) == ("work", span.traceparent.split("-")[1], "")


def test_without_an_endpoint_nothing_is_made() -> None:
    """Nor is OpenTelemetry imported."""
    with tracing.opened(TracingConfig(), "test") as tracer:
        assert tracer is None
    assert tracing.traceparent() == ""
    assert tracing.part("a") is tracing.part("b")
    code = (
        "import sys, student_trainer.train.run, teacher_server.serve.run, teacher_server.engine.engine\n"
        "from shared import tracing\n"
        "with tracing.opened(tracing.TracingConfig(), 'test'): tracing.part('a')\n"
        "print(*[name for name in sys.modules if name.startswith('opentelemetry.sdk')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout == "\n"


@pytest.mark.parametrize("text", ["127.0.0.1:4317", "ftp://host:1", "http://", "http://host:1/v1/traces", "off"])
def test_an_endpoint_is_checked(text: str) -> None:
    with pytest.raises(ValueError, match="expected http://HOST:PORT"):
        TracingConfig(endpoint=text)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    opening = tracing.opened(TracingConfig(endpoint="http://127.0.0.1:1"), "test")
    with pytest.raises(ConfigError, match=r"needs the extra \[tracing\]"):
        opening.__enter__()
