"""A load generator: many clients of one daemon, each with its own connection and its own name.

    python -m benchmarks.load --address 127.0.0.1:50051 --store STORE --clients 8 --positions 16 --seconds 10

Requests are encoded before the clock starts, but for `--contexts random`, whose requests are new for ever and made
on the way. A client asks its own requests in order, and begins again at the end (`--once`: it stops). WINDOW mode
sends exactly so many positions; SEQUENCE mode sends whole trips until there are so many.

On a stream the daemon grants positions (`StreamScoreResponse.credit`): a client with more than one request in
flight sends the next one only within its grant. With nothing in flight it may always send one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import multiprocessing
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import grpc
import psutil

from benchmarks import meters, questions
from benchmarks.common import Table
from benchmarks.meters import Latency
from shared.errors import ConfigError, ReportableError
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.store import Store
from shared.wire import HistoryMode, ScoreQuery, encode_query

SERVICE = "/teacher.v1.TeacherService/"
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # channels of one process would share a connection
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
)
CONNECT_SECONDS = 30
ANSWER_SECONDS = 300
"""An answer that takes longer is lost."""


@dataclasses.dataclass(frozen=True)
class Load:
    """What is asked, by whom, and how fast.

    Attributes:
        address: HOST:PORT of the daemon.
        store: whose trips are asked about, or whose cells random contexts are made of.
        clients: connections.
        positions: of a request; SEQUENCE mode: at least so many.
        mode: WINDOW or SEQUENCE.
        window: cells of history; 0, SEQUENCE only: all of it.
        think: seconds from an answer to the next request in its place.
        seconds: for which requests are sent; those under way are waited for.
        transport: stream or unary.
        in_flight: requests of a client under way, if the daemon grants them.
        contexts: trips (of `split`) or random (never repeated).
        split: train, val or test.
        first_trip: of the split.
        pool: requests encoded for each client.
        shared: all clients ask the same requests, at the same time.
        once: a client stops after its requests instead of beginning again.
        processes: that the clients are divided among.
        name: clients are `name`-0, `name`-1, ...
        seed: of random contexts.
    """

    address: str
    store: Path
    clients: int = 1
    positions: int = 2000
    mode: str = "window"
    window: int = 4
    think: float = 0.0
    seconds: float = 10.0
    transport: str = "stream"
    in_flight: int = 1
    contexts: str = "trips"
    split: str = "val"
    first_trip: int = 0
    pool: int = 100
    shared: bool = False
    once: bool = False
    processes: int = 1
    name: str = "load"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode == "window" and self.window == 0:
            raise ConfigError("window 0, the whole history, needs mode sequence")


@dataclasses.dataclass(frozen=True)
class Message:
    """A request, encoded.

    Attributes:
        id: its request_id.
        positions: that it asks about.
        content: StreamScoreRequest or ScoreRequest, as bytes.
    """

    id: int
    positions: int
    content: bytes


@dataclasses.dataclass(frozen=True)
class Answered:
    """One request as its client saw it: seconds since the epoch and for it, positions, and its status."""

    sent: float
    seconds: float
    positions: int
    code: str


@dataclasses.dataclass
class Credit:
    """What one caller may send on a stream: the rule of `StreamScoreResponse.credit`."""

    balance: int = 0
    in_flight: int = 0

    def allows(self, positions: int) -> bool:
        """Whether a request of so many positions may be sent now."""
        return self.in_flight == 0 or self.balance >= max(positions, 1)

    def spend(self, positions: int) -> None:
        """A request is sent."""
        self.balance -= max(positions, 1)
        self.in_flight += 1

    def answered(self) -> None:
        """A request is answered, whether with scores or an error."""
        self.in_flight -= 1


class Asker(Protocol):
    """A client's connection."""

    async def ask(self, message: Message) -> str:
        """Sends a request, if need be after a wait for credit; its status once it is answered."""
        ...


class Unary:
    """A call a request."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        self._score: Any = channel.unary_unary(SERVICE + "Score", None, None)  # bytes as they are
        self._metadata = (("teacher-client", name),)

    async def ask(self, message: Message) -> str:
        """See `Asker`."""
        try:
            await self._score(message.content, metadata=self._metadata, timeout=ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"


class Stream:
    """One bidirectional stream with credit."""

    def __init__(self, channel: grpc.aio.Channel, name: str) -> None:
        method: Any = channel.stream_stream(SERVICE + "StreamScore", None, None)  # bytes as they are
        self._call = method(metadata=(("teacher-client", name),))
        self._credit, self._changed = Credit(), asyncio.Condition()
        self._waiting: dict[int, asyncio.Future[str]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    async def ask(self, message: Message) -> str:
        """See `Asker`."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._reader.done() or self._may_send(message))
            self._credit.spend(message.positions)
            answer = self._waiting[message.id] = asyncio.get_running_loop().create_future()
        if self._reader.done():
            return "UNAVAILABLE"
        async with self._writing:
            await self._call.write(message.content)
        async with asyncio.timeout(ANSWER_SECONDS):
            code: str = await answer
            return code

    def _may_send(self, message: Message) -> bool:
        """Within the credit, and not the same request twice at once: ids in flight are unique."""
        return message.id not in self._waiting and self._credit.allows(message.positions)

    async def close(self) -> None:
        """Ends the stream; every request has been answered."""
        if not self._reader.done():
            await self._call.done_writing()
        await self._reader

    async def _read(self) -> None:
        failure = "UNAVAILABLE"
        try:
            async for content in self._call:
                message = pb.StreamScoreResponse.FromString(content)
                async with self._changed:
                    self._credit.balance += message.credit
                    if result := message.WhichOneof("result"):
                        self._credit.answered()
                        code = "OK" if result == "response" else _code(message.error.code)
                        self._waiting.pop(message.request_id).set_result(code)
                    self._changed.notify_all()
        except grpc.aio.AioRpcError as error:
            failure = error.code().name
        for answer in self._waiting.values():
            answer.set_result(failure)
        async with self._changed:
            self._changed.notify_all()


@functools.cache
def _code(number: int) -> str:
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))


def encode(query: ScoreQuery, request_id: int, transport: str) -> Message:
    """A request as it goes over the wire."""
    request = encode_query(query, request_id)
    message = pb.StreamScoreRequest(request=request) if transport == "stream" else request
    return Message(request_id, query.positions, message.SerializeToString())


def messages(load: Load, clients: Sequence[int]) -> dict[int, Iterator[Message]]:
    """The requests of these clients.

    Raises:
        ConfigError: the split has not so many trips.
    """
    store, mode = Store(load.store), HistoryMode[load.mode.upper()]
    if load.contexts == "random":
        return {client: _new_for_ever(load, store, mode, client) for client in clients}
    everyone = 1 if load.shared else load.clients
    wanted = everyone * load.pool * load.positions
    trips = store.trips(load.split)  # type: ignore[arg-type]
    needed = int(trips.lengths[load.first_trip :].cumsum().searchsorted(2 * wanted)) + load.pool
    positions = questions.of_trips(store, trips, load.first_trip, needed)
    queries = list(
        itertools.islice(questions.requests(positions, load.positions, mode, load.window), everyone * load.pool)
    )
    if len(queries) < everyone:
        raise ConfigError(f"{load.store} has not enough {load.split} trips for {everyone} clients; lower --positions")
    encoded = [encode(query, number + 1, load.transport) for number, query in enumerate(queries)]
    pools = {client: encoded if load.shared else encoded[client::everyone] for client in clients}
    return {client: iter(pool) if load.once else itertools.cycle(pool) for client, pool in pools.items()}


def _new_for_ever(load: Load, store: Store, mode: HistoryMode, client: int) -> Iterator[Message]:
    cells, seed = store.tokeniser.vocabulary.cells, 1000 * load.seed + client
    queries = questions.endless(cells, load.positions, mode, load.window, seed)
    return (encode(query, number + 1, load.transport) for number, query in enumerate(queries))


@contextlib.asynccontextmanager
async def _connected(load: Load, name: str) -> AsyncIterator[Asker]:
    async with grpc.aio.insecure_channel(load.address, options=OPTIONS) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), CONNECT_SECONDS)
        except TimeoutError:
            raise ConfigError(f"no teacher at {load.address}; start one with `teacher-server serve`") from None
        if load.transport == "unary":
            yield Unary(channel, name)
            return
        stream = Stream(channel, name)
        yield stream
        await stream.close()


async def _client(load: Load, number: int, asked: Iterator[Message], start: Callable[[], Any]) -> list[Answered]:
    """One client's requests until its time is up."""
    answers: list[Answered] = []

    async def lane(until: float) -> None:
        for message in asked:
            before = time.perf_counter()
            code = await asker.ask(message)
            now = time.perf_counter()
            answers.append(Answered(time.time() - (now - before), now - before, message.positions, code))
            if now + load.think >= until or code == "UNAVAILABLE":  # a teacher that has gone answers nothing more
                return
            if load.think:
                await asyncio.sleep(load.think)

    async with _connected(load, f"{load.name}-{number}") as asker:
        await start()
        until = time.perf_counter() + load.seconds
        await asyncio.gather(*(lane(until) for _ in range(load.in_flight)))
    return answers


async def _clients(load: Load, numbers: Sequence[int], wait: Callable[[], object]) -> tuple[list[Answered], float]:
    """These clients' answers, and processor seconds of this process meanwhile."""
    prepared = messages(load, numbers)
    together = asyncio.Barrier(len(numbers))
    cpu = 0.0

    async def start() -> None:
        nonlocal cpu
        if await together.wait() == 0:  # one of the clients waits for the other processes, and holds up its own
            await asyncio.to_thread(wait)
            cpu = time.process_time()
        await together.wait()

    answers = await asyncio.gather(*(_client(load, n, prepared[n], start) for n in numbers))
    return [answer for client in answers for answer in client], time.process_time() - cpu


def play(load: Load) -> tuple[list[Answered], float]:
    """Plays the load; every answer, and processor seconds of the generator.

    Raises:
        ConfigError: no daemon, or not enough trips.
    """
    shares = [share for share in (range(load.clients)[i :: load.processes] for i in range(load.processes)) if share]
    if len(shares) == 1:
        return asyncio.run(_clients(load, shares[0], lambda: None))
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(len(shares)), context.SimpleQueue()
    workers = [context.Process(target=_work, args=(load, share, barrier, results), daemon=True) for share in shares]
    for worker in workers:
        worker.start()
    parts = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    if failed := [part for part in parts if isinstance(part, str)]:
        raise ConfigError(failed[0])
    return [answer for answers, _ in parts for answer in answers], sum(cpu for _, cpu in parts)


@contextlib.contextmanager
def beside(load: Load, metrics: str) -> Iterator[None]:
    """Plays a load in a process of its own from its first answer on until the block ends, whatever its seconds.

    Args:
        load: what to play.
        metrics: HOST:PORT of the daemon's metrics.

    Raises:
        ConfigError: it ended before the block.
    """
    before = meters.scrape(metrics)
    worker = multiprocessing.get_context("spawn").Process(target=play, args=(load,), daemon=True)
    worker.start()
    try:
        while worker.is_alive() and not meters.growth(before, meters.scrape(metrics), "teacher_scored_positions_total"):
            time.sleep(0.1)
        yield
    finally:
        alive = worker.is_alive()
        worker.terminate()
        worker.join()
    if not alive:
        raise ConfigError(f"the load {load.name} ended before its time with code {worker.exitcode}")


def _work(load: Load, clients: Sequence[int], barrier: Any, results: Any) -> None:
    """The life of one of several processes."""
    try:
        results.put(asyncio.run(_clients(load, clients, barrier.wait)))
    except Exception as error:  # the parent waits for one result of each
        barrier.abort()
        results.put(f"{type(error).__name__}: {error}")


def summary(answers: Sequence[Answered]) -> dict[str, Any]:
    """Speed and latencies of what was answered with scores; how often anything else was."""
    good = [answer for answer in answers if answer.code == "OK"]
    codes = Counter(answer.code for answer in answers)
    found: dict[str, Any] = {"requests": len(good), "codes": dict(codes)}
    if good:
        first, last = min(a.sent for a in good), max(a.sent + a.seconds for a in good)
        positions = sum(answer.positions for answer in good)
        found |= {
            "seconds": last - first,
            "positions": positions,
            "requests_per_second": len(good) / (last - first),
            "positions_per_second": positions / (last - first),
            "latency_ms": dataclasses.asdict(Latency.of([answer.seconds for answer in good])),
        }
    return found


def run(load: Load, metrics: str | None = None, pid: int | None = None) -> dict[str, Any]:
    """Plays the load and measures both ends.

    Args:
        load: what to play.
        metrics: HOST:PORT of the daemon's metrics.
        pid: of the daemon.
    """
    server = psutil.Process(pid) if pid is not None else None
    cpu = meters.tree_cpu(server) if server else 0.0
    before = meters.scrape(metrics) if metrics else {}
    answers, own_cpu = play(load)
    after = meters.scrape(metrics) if metrics else {}
    found = summary(answers)
    if not found["requests"]:
        raise ConfigError(f"{load.address} answered nothing but {found['codes'] or 'silence'}")
    found["generator_cpu"] = own_cpu / found["seconds"] / load.processes
    if server:
        cpu = meters.tree_cpu(server) - cpu
        found["server_cpu_ms_per_request"] = 1000 * cpu / found["requests"]
        found["server_cpu_ms_per_1000_positions"] = 1e6 * cpu / found["positions"]
    if metrics:
        found["batch_positions"] = meters.mean_of(before, after, "teacher_batch_positions")
        found["batches"] = _batches(before, after)
        found["hit_rate"] = meters.hit_rate(before, after)
        found["evictions"] = meters.growth(before, after, "teacher_cache_evictions_total")
    return found


def _batches(before: meters.Samples, after: meters.Samples) -> dict[str, float]:
    """Batches by why they were cut."""
    counted: dict[str, float] = defaultdict(float)
    for (name, labels), value in after.items():
        if name == "teacher_batches_total":
            counted[dict(labels)["reason"]] += value - before.get((name, labels), 0.0)
    return {reason: count for reason, count in counted.items() if count}


def table(load: Load, found: dict[str, Any]) -> Table:
    """What `run` found, for people."""
    rows = [
        ("positions/s", f"{found['positions_per_second']:,.0f}"),
        ("requests/s", f"{found['requests_per_second']:,.1f}"),
        *((f"{name}, ms", f"{value:.2f}") for name, value in found["latency_ms"].items()),
        ("positions a request", f"{found['positions'] / found['requests']:,.1f}"),
        ("generator's CPU, of a core a process", f"{found['generator_cpu']:.0%}"),
        *((f"answered {code}", f"{count:,}") for code, count in found["codes"].items()),
    ]
    formats = {
        "server_cpu_ms_per_request": ("server CPU ms a request", "{:.3f}"),
        "server_cpu_ms_per_1000_positions": ("server CPU ms / 1,000 positions", "{:.2f}"),
        "batch_positions": ("positions a batch", "{:,.1f}"),
        "hit_rate": ("rows not computed", "{:.1%}"),
        "evictions": ("evictions", "{:,.0f}"),
    }
    rows += [(name, shape.format(found[key])) for key, (name, shape) in formats.items() if found.get(key) is not None]
    rows += [(f"batches cut: {reason}", f"{count:,.0f}") for reason, count in found.get("batches", {}).items()]
    what = f"{load.clients} clients, {load.positions} positions, {load.mode} {load.window}, {load.transport}"
    return Table(what, ["measure", "value"], rows)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code (0 done, 2 bad input, 130 interrupted)."""
    arguments = _parse(argv)
    metrics, pid, as_json = arguments.pop("metrics"), arguments.pop("pid"), arguments.pop("json")
    try:
        load = Load(**arguments)
        found = run(load, metrics, pid)
    except ReportableError as error:
        print(f"benchmarks.load: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(json.dumps(found) if as_json else table(load, found).markdown())
    return 0


def _parse(argv: Sequence[str] | None) -> dict[str, Any]:
    default = {field.name: field.default for field in dataclasses.fields(Load)}
    parser = argparse.ArgumentParser(
        "benchmarks.load",
        description=(__doc__ or "").partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )

    def add(name: str, help: str, **kind: Any) -> None:
        parser.add_argument(f"--{name.replace('_', '-')}", default=default[name], help=help, **kind)

    parser.add_argument("--address", required=True, help="HOST:PORT of the daemon")
    parser.add_argument("--store", required=True, type=Path, help="store of the questions")
    add("clients", "connections", type=int)
    add("positions", "of a request; sequence: whole trips until there are so many", type=int)
    add("mode", "what a row is", choices=("window", "sequence"))
    add("window", "cells of history; 0: all, sequence only", type=int)
    add("think", "seconds from an answer to the next request", type=float)
    add("seconds", "for which requests are sent", type=float)
    add("transport", "how", choices=("stream", "unary"))
    add("in_flight", "requests of a client under way, within the daemon's grant", type=int)
    add("contexts", "of the store's trips, or random cells that never repeat", choices=("trips", "random"))
    add("split", "of the store", choices=("train", "val", "test"))
    add("first_trip", "of the split", type=int)
    add("pool", "requests encoded for each client", type=int)
    add("shared", "all clients ask the same requests", action="store_true")
    add("once", "stop after the pool instead of beginning again", action="store_true")
    add("processes", "that the clients are divided among", type=int)
    add("name", "of the clients, before -0, -1, ...")
    add("seed", "of random contexts", type=int)
    parser.add_argument("--metrics", help="HOST:PORT of the daemon's metrics: batches, hit rate")
    parser.add_argument("--pid", type=int, help="of the daemon: its processor time")
    parser.add_argument("--json", action="store_true", help="one line of JSON instead of a table")
    return vars(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
