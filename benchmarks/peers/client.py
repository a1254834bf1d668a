"""Clients of one server: K workers in one asyncio process, one request each, every worker on a connection of its own.

Runs in the peer's environment, so it imports only what is there: numpy, psutil, grpc and the peer's client. Prints
one line of JSON a combination of rows a request and workers.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from benchmarks.peers.rows import WINDOW, Float16, Rows

READY_SECONDS = 120
"""How long a server may take to start."""
POOL_ROWS, POOL_REQUESTS = 240_000, 12_000
"""At most so much is encoded before the clock starts; a worker that needs more begins again."""


class Adapter(Protocol):
    """One connection to one kind of server."""

    def encode(self, rows: Rows) -> Any:
        """A request, ready to be sent."""
        ...

    async def ask(self, request: Any) -> Any:
        """The answer, not decoded; raises what its library raises."""
        ...

    def decode(self, answer: Any, rows: Rows) -> Float16:
        """float16 [n, C]."""
        ...


def _scores(content: bytes, rows: Rows) -> Float16:
    return np.frombuffer(content, "<f2").reshape(len(rows), -1)


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Refused(Exception):
    """The server answered, but not with scores."""


class Http:
    """HTTP/1.1 with one connection that is kept, and nothing else."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None

    async def post(self, path: str, content: bytes, kind: str) -> bytes:
        """The body of the answer; raises `Refused` if it is not a 200, `ConnectionError` if there is none."""
        head = (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        message = head.encode() + content
        kept, self._connection = self._connection, None  # it is kept only after a whole answer
        try:
            if kept is not None:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):  # closed meanwhile: servers do not
                    return await self._exchange(kept, message)  # keep for long what is idle
            return await self._exchange(await asyncio.open_connection("127.0.0.1", self._port), message)
        except (OSError, asyncio.IncompleteReadError) as error:
            raise ConnectionError(f"{path}: {error!r}") from None

    async def _exchange(self, connection: Connection, message: bytes) -> bytes:
        reader, writer = connection
        writer.write(message)
        status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        (length,) = [line.partition(":")[2] for line in headers if line.lower().startswith("content-length:")]
        body = await reader.readexactly(int(length))
        self._connection = connection
        if status.split()[1] != "200":
            raise Refused(f"{status}: {body[:200]!r}")
        return body


class Mosec(Http):
    """Raw bytes."""

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        return rows.tobytes()

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        return await self.post("/inference", request, "application/octet-stream")

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        return _scores(answer, rows)


class LitServe(Http):
    """base64 in JSON."""

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        return json.dumps({"rows": base64.b64encode(rows.tobytes()).decode()}).encode()

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        return await self.post("/predict", request, "application/json")

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        return _scores(base64.b64decode(json.loads(answer)["scores"]), rows)


class BentoML(Http):
    """JSON lists; an endpoint for each number of rows."""

    def encode(self, rows: Rows) -> tuple[str, bytes]:
        """See `Adapter`."""
        return f"/score_{len(rows)}", json.dumps({"rows": rows.tolist()}).encode()

    async def ask(self, request: tuple[str, bytes]) -> bytes:
        """See `Adapter`."""
        return await self.post(*request, "application/json")

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        return np.array(json.loads(answer), np.float16)


class Plain:
    """gRPC, unary, raw bytes."""

    def __init__(self, port: int) -> None:
        from benchmarks.peers.plain_server import METHOD, SERVICE

        self._ask: Any = _channel(port).unary_unary(f"/{SERVICE}/{METHOD}", None, None)

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        return rows.tobytes()

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        answer: bytes = await self._ask(request)
        return answer

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        return _scores(answer, rows)


class Ray(Plain):
    """gRPC, unary, a message of bytes; the metadata names the application."""

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        from google.protobuf.wrappers_pb2 import BytesValue

        return BytesValue(value=rows.tobytes()).SerializeToString()

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        answer: bytes = await self._ask(request, metadata=(("application", "rows"),))
        return answer

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        from google.protobuf.wrappers_pb2 import BytesValue

        return _scores(BytesValue.FromString(answer).value, rows)


class PyTriton:
    """Triton's own client; a model for each number of rows."""

    def __init__(self, port: int) -> None:
        from tritonclient.grpc import InferInput
        from tritonclient.grpc.aio import InferenceServerClient

        self._client, self._input = InferenceServerClient(f"127.0.0.1:{port}"), InferInput

    def encode(self, rows: Rows) -> tuple[str, list[Any]]:
        """See `Adapter`."""
        tensor = self._input("rows", list(rows.shape), "INT32")
        tensor.set_data_from_numpy(np.ascontiguousarray(rows))
        return f"rows_{len(rows)}", [tensor]

    async def ask(self, request: tuple[str, list[Any]]) -> Any:
        """See `Adapter`."""
        return await self._client.infer(*request)

    def decode(self, answer: Any, rows: Rows) -> Float16:
        """See `Adapter`."""
        scores: Float16 = answer.as_numpy("scores")
        return scores


class Ours:
    """This project's daemon, WINDOW mode, by unary calls."""

    def __init__(self, port: int) -> None:
        self._numbers, self._channel = itertools.count(1), _channel(port)
        self._score: Any = self._channel.unary_unary("/teacher.v1.TeacherService/Score", None, None)

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        return bytes(self._message(rows).SerializeToString())

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        answer: bytes = await self._score(request)
        return answer

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        from shared.rpc.teacher.v1 import teacher_pb2 as pb

        return self._padded(pb.ScoreResponse.FromString(answer), rows)

    def _message(self, rows: Rows) -> Any:
        from shared.rpc.teacher.v1 import teacher_pb2 as pb

        windows, candidates = rows[:, 1 : 1 + WINDOW], rows[:, 1 + WINDOW :]
        exists = candidates >= 0
        return pb.ScoreRequest(
            request_id=next(self._numbers),
            mode=pb.HISTORY_MODE_WINDOW,
            history_tokens=windows[np.arange(WINDOW) < rows[:, :1]].tobytes(),
            history_lengths=rows[:, 0].tobytes(),
            candidate_tokens=candidates[exists].tobytes(),
            candidate_lengths=exists.sum(1, dtype=np.int32).tobytes(),
        )

    def _padded(self, response: Any, rows: Rows) -> Float16:
        exists = rows[:, 1 + WINDOW :] >= 0
        scores = np.zeros(exists.shape, np.float16)
        scores[exists] = np.frombuffer(response.log_probs, "<f2")
        return scores


class OursStream(Ours):
    """This project's daemon, WINDOW mode, on one stream; with one request in flight there is no need of credit."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self._method: Any = self._channel.stream_stream("/teacher.v1.TeacherService/StreamScore", None, None)
        self._call: Any = None

    def encode(self, rows: Rows) -> bytes:
        """See `Adapter`."""
        from shared.rpc.teacher.v1 import teacher_pb2 as pb

        return pb.StreamScoreRequest(request=self._message(rows)).SerializeToString()

    async def ask(self, request: bytes) -> bytes:
        """See `Adapter`."""
        if self._call is None:
            self._call = self._method()
        try:
            await self._call.write(request)
            while not _answers(answer := await self._call.read()):
                pass  # a grant alone
        except BaseException:
            self._call = None
            raise
        return bytes(answer)

    def decode(self, answer: bytes, rows: Rows) -> Float16:
        """See `Adapter`."""
        from shared.rpc.teacher.v1 import teacher_pb2 as pb

        message = pb.StreamScoreResponse.FromString(answer)
        if message.WhichOneof("result") != "response":
            raise ConnectionError(message.error.message)
        return self._padded(message.response, rows)


def _answers(content: bytes) -> bool:
    """Whether a message of the stream is more than a grant: an answer begins with its request_id, field 1."""
    return content[:1] == b"\x08"


def _channel(port: int) -> Any:
    import grpc

    options = (
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_receive_message_length", -1),
        ("grpc.enable_http_proxy", 0),
    )
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


ADAPTERS: dict[str, Callable[[int], Adapter]] = {
    "mosec": Mosec,
    "litserve": LitServe,
    "bentoml": BentoML,
    "plain": Plain,
    "ray": Ray,
    "pytriton": PyTriton,
    "ours": Ours,
    "ours-stream": OursStream,
}


@dataclasses.dataclass(frozen=True)
class Turn:
    """One combination: rows a request, workers, seconds, and the first of the rows that it asks about."""

    size: int
    workers: int
    seconds: float
    first: int


async def measure(adapters: list[Adapter], rows: Rows, turn: Turn, server: psutil.Process) -> dict[str, Any]:
    """Warms up for a third of the time, then measures; every request that was begun is counted."""
    from benchmarks.meters import Latency, tree_cpu

    chosen = adapters[: turn.workers]
    pool = min(POOL_ROWS // turn.size, POOL_REQUESTS)
    starts = (turn.first + turn.size * np.arange(pool)) % (len(rows) - turn.size + 1)
    requests = itertools.cycle([chosen[0].encode(rows[start : start + turn.size]) for start in starts])
    await _work(chosen, requests, turn.seconds / 3)
    cpu, own, start = tree_cpu(server), time.process_time(), time.perf_counter()
    latencies = await _work(chosen, requests, turn.seconds)
    elapsed, own, cpu = time.perf_counter() - start, time.process_time() - own, tree_cpu(server) - cpu
    return {
        "requests": len(latencies),
        "requests_per_second": len(latencies) / elapsed,
        "latency_ms": dataclasses.asdict(Latency.of(latencies)),
        "server_cpu_ms": 1000 * cpu / len(latencies),
        "client_cpu_ms": 1000 * own / len(latencies),
    }


async def _work(adapters: list[Adapter], requests: Iterator[Any], seconds: float) -> list[float]:
    """Latencies of all workers' requests, seconds; each makes at least one."""
    latencies: list[float] = []
    until = time.perf_counter() + seconds

    async def worker(adapter: Adapter) -> None:
        now = time.perf_counter()
        while True:
            before = now
            await adapter.ask(next(requests))
            now = time.perf_counter()
            latencies.append(now - before)
            if now >= until:
                return

    await asyncio.gather(*map(worker, adapters))
    return latencies


async def _first_answer(adapter: Adapter, rows: Rows) -> Float16:
    """Asks until the server is there."""
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            async with asyncio.timeout(10):
                return adapter.decode(await adapter.ask(adapter.encode(rows)), rows)
        except Exception as error:  # every library has its own for a server that is not there yet
            if time.monotonic() > until:
                raise TimeoutError(f"no answer within {READY_SECONDS} s: {error!r}") from error
            await asyncio.sleep(0.1)


async def _run(adapter: str, port: int, rows: Rows, turns: list[Turn], server: psutil.Process) -> None:
    adapters = [ADAPTERS[adapter](port) for _ in range(max(turn.workers for turn in turns))]
    answers = {
        size: (await _first_answer(adapters[0], rows[:size])).astype(float).tolist()
        for size in sorted({turn.size for turn in turns})
    }
    print(json.dumps({"answers": answers}), flush=True)
    for turn in turns:
        print(json.dumps(await measure(adapters, rows, turn, server)), flush=True)


def main() -> None:
    """The command line, for `section.py`."""
    parser = argparse.ArgumentParser("benchmarks.peers.client")
    parser.add_argument("--adapter", choices=ADAPTERS, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True)
    parser.add_argument("--rows", type=Path, required=True, help=".npy file")
    parser.add_argument("--turns", type=json.loads, required=True, help="[[size, workers, seconds, first], ...]")
    a = parser.parse_args()
    rows = np.load(a.rows, mmap_mode="r")
    asyncio.run(_run(a.adapter, a.port, rows, [Turn(*turn) for turn in a.turns], psutil.Process(a.pid)))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
