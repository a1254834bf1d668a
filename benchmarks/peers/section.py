"""The arms of section `peers`: each server has its turns, by rounds, with the same rows of the same trips.

An arm's server is started for its turns of a round and ended after them. Its clients are a process of their own.
Before it is measured its first answers are compared with the model's in this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import secrets
import socket
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks import cities, daemon, load, meters, questions
from benchmarks.common import REPOSITORY, BenchmarkError, Options, Result, Table, rotated, spread
from benchmarks.peers import environments, rows
from benchmarks.peers.environments import Peer
from benchmarks.teacher import CITY, GRID
from benchmarks.weights import write_teacher
from shared import ragged
from shared.store import Store

log = logging.getLogger(__name__)

N_LAYER, N_EMBD = 4, 128
TOLERANCE = 4e-3
"""Answers are float16, and sums differ in their order."""
WARM_REQUEST = 2000
"""Positions of the requests that fill the cache beforehand."""


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        combinations: positions a request, and clients.
        seconds: of a turn; a third of it before warms up.
        rounds: how often every arm has its turns.
        warm_trips: training trips that the arm with the cache has seen; what is asked are the trips after them.
        trips: that are asked about.
        peers: whether other packages take part.
    """

    combinations: tuple[tuple[int, int], ...] = (
        *((positions, clients) for positions in (1, 8) for clients in (1, 8, 32)),
        *((2000, clients) for clients in (1, 8)),  # 64,000 positions at once take the naive ones half a minute
    )
    seconds: float = 2.0
    rounds: int = 1
    warm_trips: int = 20_000
    trips: int = 30_000
    peers: bool = True

    @property
    def sizes(self) -> list[int]:
        """Positions a request."""
        return sorted({size for size, _ in self.combinations})


QUICK = Size(((1, 2), (8, 2)), seconds=0.2, rounds=1, warm_trips=64, trips=64, peers=False)


@dataclasses.dataclass(frozen=True)
class Arm:
    """A server and how it is asked.

    Attributes:
        name: its key in the figures.
        adapter: of `client.ADAPTERS`.
        wire: how rows and scores travel.
        peer: the package, if it is one.
        cache_mib: what ours may remember; None: not ours.
    """

    name: str
    adapter: str
    wire: str
    peer: Peer | None = None
    cache_mib: int | None = None


PLAIN = Arm("grpc.aio by hand", "plain", "gRPC, raw bytes")
OURS = (
    Arm("ours, cache off", "ours-stream", "gRPC stream, raw bytes", cache_mib=0),
    Arm("ours, cache off, unary", "ours", "gRPC, raw bytes", cache_mib=0),
    Arm("ours, cache on", "ours-stream", "gRPC stream, raw bytes", cache_mib=256),
)


@dataclasses.dataclass(frozen=True)
class Running:
    """A started server."""

    port: int
    process: psutil.Process
    metrics: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Setting:
    """What all arms share: store, teacher file, rows and the file that holds them, and the work directory."""

    store: Store
    teacher: Path
    rows: rows.Rows
    file: Path
    work: Path


def run(options: Options) -> Result:
    """Measures; raises `BenchmarkError` if an arm's answers are not the model's."""
    return measure(options, QUICK if options.quick else Size())


def measure(options: Options, size: Size) -> Result:
    """`run` with a size."""
    store = cities.open_store(options, CITY, GRID)
    arms, pythons, versions, missing = _arms(size, options.work)
    with tempfile.TemporaryDirectory() as folder:
        teacher = write_teacher(options.work / "peers-teacher.safetensors", store, N_LAYER, N_EMBD)
        packed = _rows(store, size)
        file = Path(folder) / "rows.npy"
        np.save(file, packed)
        setting = Setting(store, teacher, packed, file, options.work)
        expected = {count: rows.Model(teacher).score(packed[:count]) for count in size.sizes}
        rounds = []
        for number in range(size.rounds):
            played = {}
            for arm in rotated(arms, number):
                try:
                    played[arm.name] = _play(arm, pythons[arm.name], setting, size, expected)
                except BenchmarkError as error:
                    if arm.peer is None:
                        raise
                    log.error("%s; left out", error)  # the others' rounds are not thrown away for it
                    arms.remove(arm)
                    missing.append(f"{arm.name} (failed)")
            rounds.append(played)
    figures = {arm.name: _figures([played[arm.name] for played in rounds], size) for arm in arms}
    settings = {
        **cities.facts(store),
        "cells": store.tokeniser.vocabulary.cells,
        "window": rows.WINDOW,
        "n_layer": N_LAYER,
        "n_embd": N_EMBD,
        "versions": versions,
        "missing": missing,
        **dataclasses.asdict(size),
    }
    tables = [_table(count, arms, versions, figures, size) for count in size.sizes]
    return Result(
        "peers", "Other servers, the same teacher", settings, figures, tables, _notes(settings, figures, size)
    )


def _arms(size: Size, work: Path) -> tuple[list[Arm], dict[str, str], dict[str, str], list[str]]:
    """Arms, each one's interpreter and version, and the peers that are not installed."""
    arms, pythons, versions, missing = [PLAIN, *OURS], {}, {}, []
    for peer in environments.PEERS if size.peers else ():
        found = environments.find(peer, work)
        if found is None:
            missing.append(f"{peer.name} (not installed: make bench-peers)")
            continue
        arms.append(Arm(peer.name, peer.adapter, peer.wire, peer))
        pythons[peer.name], versions[peer.name] = str(found[0]), found[1]
    return arms, {arm.name: pythons.get(arm.name, sys.executable) for arm in arms}, versions, missing


def _rows(store: Store, size: Size) -> rows.Rows:
    """Rows about the trips after those that warm the cache, in the trips' order."""
    trips = store.trips("train")
    positions = questions.of_trips(store, trips, size.warm_trips, size.trips)
    query = positions.windows(0, len(positions), rows.WINDOW)
    length = query.history_lengths
    candidates = ragged.pad(query.candidate_tokens, query.candidate_lengths, int(query.candidate_lengths.max()), -1)
    windows = ragged.pad(query.history_tokens, length, rows.WINDOW, 0)
    packed: npt.NDArray[np.int32] = np.hstack([length[:, None], windows, candidates]).astype(np.int32)
    return packed


def _play(
    arm: Arm, python: str, setting: Setting, size: Size, expected: dict[int, rows.Float16]
) -> list[dict[str, Any]]:
    """An arm's turns of a round, one of each combination."""
    step = len(setting.rows) // len(size.combinations)  # every turn asks about other rows
    turns = [[*combination, size.seconds, i * step] for i, combination in enumerate(size.combinations)]
    with _started(arm, python, setting, size) as server:
        before = meters.scrape(server.metrics) if server.metrics else {}
        command = [python, "-m", "benchmarks.peers.client", "--adapter", arm.adapter, "--port", str(server.port)]
        command += ["--pid", str(server.process.pid), "--rows", str(setting.file), "--turns", json.dumps(turns)]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=_environment(), stdout=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            raise BenchmarkError(f"the clients of {arm.name} failed; their log is above")
        after = meters.scrape(server.metrics) if server.metrics else {}
    first, *found = map(json.loads, done.stdout.splitlines())
    for count, answer in first["answers"].items():
        difference = np.abs(np.array(answer) - expected[int(count)].astype(float)).max()
        if not difference <= TOLERANCE:
            raise BenchmarkError(f"{arm.name}: answers to {count} rows differ from the model's by {difference:.2g}")
    return [{**turn, "hit_rate": meters.hit_rate(before, after) if server.metrics else None} for turn in found]


@contextlib.contextmanager
def _started(arm: Arm, python: str, setting: Setting, size: Size) -> Iterator[Running]:
    if arm.cache_mib is not None:
        with daemon.serve(setting.teacher, "engine.threads=1", daemon.remembering(arm.cache_mib)) as ours:
            if arm.cache_mib:
                _warm(ours, setting, size)
            yield Running(int(ours.address.rpartition(":")[2]), ours.process, ours.metrics)
        return
    port = _free_port()
    environment = _environment() | {
        rows.TEACHER: str(setting.teacher),
        rows.WIDTH: str(setting.rows.shape[1]),
        rows.PORT: str(port),
        rows.SIZES: ",".join(map(str, size.sizes)),
        "BENTOML_HOME": str((setting.work / "peers" / "bentoml-home").resolve()),
    }
    if arm.name == "pytriton":  # its stub would load the system's libpython under this interpreter's library
        environment["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    command = [python, "-m", f"benchmarks.peers.{arm.peer.server if arm.peer else 'plain_server'}"]
    if arm.name == "bentoml":
        service = "benchmarks.peers.bentoml_server:Service"
        command = [python, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]
    journal = setting.work / "peers" / f"{arm.adapter}.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.open("w") as output:
        process = psutil.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield Running(port, process)
        finally:
            _end(process)


def _warm(ours: daemon.Daemon, setting: Setting, size: Size) -> None:
    """Asks about the trips before those that are measured, each once."""
    seen = int((setting.store.trips("train").lengths[: size.warm_trips] - 1).sum())
    request = min(WARM_REQUEST, seen // 2)
    asked = load.Load(
        ours.address, setting.store.path, positions=request, mode="sequence", window=rows.WINDOW, seconds=600.0,
        split="train", pool=seen // request - 1, once=True, in_flight=4,
    )  # fmt: skip
    load.play(asked)


def _end(process: psutil.Process) -> None:
    """Ends a server and all that it started."""
    family = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        family += process.children(recursive=True)
        process.terminate()
    _, alive = psutil.wait_procs(family, timeout=10)
    for survivor in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    psutil.wait_procs(alive, timeout=5)


def _environment() -> dict[str, str]:
    """Of servers and clients: our code, one thread, no reports to anybody."""
    return os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "true",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),  # of this cluster; Ray would keep one in the home directory
    }


def _free_port() -> int:
    """A port that is free, and the next one, too."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


def _figures(rounds: Sequence[list[dict[str, Any]]], size: Size) -> dict[str, Any]:
    """Medians over the rounds, by combination."""
    figures: dict[str, Any] = {}
    for i, (positions, clients) in enumerate(size.combinations):
        turns = [played[i] for played in rounds]
        hit_rates = [turn["hit_rate"] for turn in turns if turn["hit_rate"] is not None]
        figures[f"{positions} x {clients}"] = {
            "requests_per_second": spread([turn["requests_per_second"] for turn in turns]),
            "p50_ms": statistics.median(turn["latency_ms"]["p50"] for turn in turns),
            "p99_ms": statistics.median(turn["latency_ms"]["p99"] for turn in turns),
            "server_cpu_ms": statistics.median(turn["server_cpu_ms"] for turn in turns),
            "client_cpu_ms": statistics.median(turn["client_cpu_ms"] for turn in turns),
            "requests": sum(turn["requests"] for turn in turns),
            "hit_rate": statistics.median(hit_rates) if hit_rates else None,
        }
    return figures


def _table(positions: int, arms: Sequence[Arm], versions: dict[str, str], figures: dict[str, Any], size: Size) -> Table:
    clients = [count for other, count in size.combinations if other == positions]
    columns = ("requests/s", "p50 ms", "p99 ms", "CPU ms")
    header = ["server", "wire", *(f"{count}: {column}" for count in clients for column in columns)]
    lines = []
    for arm in arms:
        version = f" {versions[arm.name]}" if arm.name in versions else ""
        cells = []
        for count in clients:
            found = figures[arm.name][f"{positions} x {count}"]
            speed = found["requests_per_second"]["median"]
            cells += [f"{speed:,.4g}", f"{found['p50_ms']:.3g}", f"{found['p99_ms']:.3g}"]
            cells.append(f"{found['server_cpu_ms']:.3g}")
        lines.append([f"{arm.name}{version}", arm.wire, *cells])
    return Table(f"{positions:,} positions a request, by clients", header, lines)


def _notes(settings: dict[str, Any], figures: dict[str, Any], size: Size) -> list[str]:
    best = {}
    for combination in figures[PLAIN.name]:
        others = [name for name in figures if not name.startswith("ours")]
        best[combination] = max(others, key=lambda name: figures[name][combination]["requests_per_second"]["median"])
    ratios = []
    for combination, name in best.items():
        theirs = figures[name][combination]["requests_per_second"]["median"]
        mine = [figures[arm.name][combination]["requests_per_second"]["median"] / theirs for arm in OURS]
        ratios.append(f"{combination}: {mine[0]:.2f}, {mine[1]:.2f} and {mine[2]:.2f} of {name}")
    notes = [
        f"Teacher of {N_LAYER} layers of {N_EMBD} over {settings['cells']:,} cells, window {rows.WINDOW}; rows of real "
        f"trips of {settings['city']} in their order; {size.rounds} rounds by turns, medians; one thread of torch; "
        "float16 answers, each server's first ones compared with the model's.",
        f"The peers run the obvious call: merge, pad, head at the last position only, softmax, gather; {rows.AT_ONCE} "
        f"rows at once. Each merges up to {rows.MAX_REQUESTS} requests (BentoML and PyTriton, which count rows: the "
        f"rows of so many) and waits up to {1000 * rows.WAIT_SECONDS:g} ms (BentoML: as it learns).",
        "Clients: one asyncio process, one request each, a connection each. CPU: processor milliseconds of the whole "
        "process tree for a request. 2,000 positions from 32 clients are left out: half a minute a "
        "turn for some.",
        f"The cache had seen {size.warm_trips:,} other trips; the trips asked about were new to it.",
        "Ours (cache off, cache off and unary, cache on) in requests/s of the best other one: "
        + "; ".join(ratios)
        + ".",
    ]
    if settings["missing"]:
        notes.append(f"Not measured: {', '.join(settings['missing'])}.")
    return notes
