"""A daemon at saturation whose clients come and go, sampled; and what the samples say.

The load: trainers' clients that keep the model busy and are replaced one by one; visitors that ask well, badly, in
haste, and leave in the middle; callers that stop reading; callers that are killed. The cache is so small that it
evicts all the time, so that its filling is over before the first third that is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import grpc
import numpy as np
import psutil
from scipy import stats

from benchmarks import daemon, meters, questions
from benchmarks.common import REPOSITORY, BenchmarkError, Result, Table
from benchmarks.daemon import Daemon
from benchmarks.soak.clients import FEWEST_CELLS
from benchmarks.weights import write_random
from shared import wire
from shared.rpc.teacher.v1 import teacher_pb2 as pb
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.vocab import Tokeniser, Vocabulary
from shared.wire import HistoryMode

MIB = 2**20
ERROR_LINE = re.compile(r"\S+Z [EC] ")
"""How a line of the daemon's log begins that tells of an error: time, level."""
N_LAYER, N_EMBD = 2, 64
OVERRIDES = ("engine.threads=1", "cache.mib=4", "batching.max_queued_positions=20000",
             "batching.max_request_positions=2000")  # fmt: skip
"""A queue that the clients fill."""


@dataclasses.dataclass(frozen=True)
class Role:
    """What a place among the clients is for: its occupant is replaced when it has gone.

    Attributes:
        kind: of `clients`.
        stays: seconds, least and most, after which it is sent away; None: it goes by itself.
        signal: what sends it away.
    """

    kind: str
    stays: tuple[float, float] | None
    signal: signal.Signals = signal.SIGTERM


ROLES = (
    Role("stay", (40, 80)),
    Role("stay", (40, 80)),
    Role("stay", (3, 12), signal.SIGKILL),
    Role("visit", (20, 40)),
    Role("visit", (5, 20), signal.SIGKILL),
    Role("deaf", None),
    Role("deaf", (3, 9), signal.SIGKILL),
)
WARM_UP = 0.1
"""Share of the samples, from the first on, that nobody judges."""
TOLERANCE = {"rss_mib": (0.05, 4.0), "fds": (0.1, 3.0), "threads": (0.1, 3.0)}
"""By how much the median of the last third may exceed that of the first: share of it, and how much anyway."""
AT_REST = {"fds": 3.0, "threads": 6.0}
"""How many more there may be, when all clients have gone, than before the first came: pollers and pools of gRPC."""
GAUGES = {
    "in_flight": "teacher_in_flight_requests",
    "queue": "teacher_queue_positions",
    "streams": "teacher_open_streams",
    "credits": "teacher_credit_positions",
}
PATIENCE_SECONDS = 600.0
"""How long the load goes on beyond its time at most, to see what was waited for."""
REST_SECONDS = 60.0
"""How long the last requests may take to end when their callers have gone."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """The daemon at one time: seconds since the load began; resident MiB; counts."""

    seconds: float
    rss_mib: float
    fds: int
    threads: int
    in_flight: float
    queue: float
    streams: float
    credits: float
    computed: float
    busy_seconds: float


@dataclasses.dataclass(frozen=True)
class Soaked:
    """What was seen.

    Attributes:
        seconds: of load.
        before, after: the daemon at rest.
        samples: under load.
        clients: how many of each kind there were.
        complaints: of clients, the daemon's log and the probe; nothing if all went well.
        codes: requests ended, by status.
        evictions: of the cache.
    """

    seconds: float
    before: Sample
    after: Sample
    samples: Sequence[Sample]
    clients: dict[str, int]
    complaints: Sequence[str]
    codes: dict[str, int]
    evictions: int


def run(
    seconds: float,
    every: float,
    work: Path,
    has_seen_enough: Callable[[Sequence[Sample], Counter[str]], bool] = lambda samples, codes: True,
) -> Soaked:
    """Soaks a daemon for so long.

    Args:
        seconds: of load at least.
        every: seconds between two samples.
        work: directory for the teacher.
        has_seen_enough: of the samples and of the requests ended by status; while it is false the load goes on, so
            that a short run on a slow machine, whose clients take long to start, sees what a fast one sees.

    Raises:
        BenchmarkError: it did not start, or ended, or has not seen enough after `PATIENCE_SECONDS` more.
    """
    tokeniser = Tokeniser(Vocabulary.full(FEWEST_CELLS), None)
    teacher = write_random(work / "soak.safetensors", tokeniser, N_LAYER, N_EMBD)
    with tempfile.TemporaryFile() as log, daemon.serve(teacher, *OVERRIDES, log=log) as server:
        probe = _Probe(server.address)
        start = time.monotonic()
        before = _sample(server, start)
        samples: list[Sample] = []
        complaints: list[str] = []
        with _crowd(server.address) as crowd:
            while True:
                now = time.monotonic() - start
                if now >= seconds and has_seen_enough(samples, codes := _codes(meters.scrape(server.metrics))):
                    break
                if now >= seconds + PATIENCE_SECONDS:
                    raise BenchmarkError(f"{now:.0f} s of load have not shown what was waited for: {codes}")
                time.sleep(min(every, seconds - now) if now < seconds else every)
                crowd.turn()
                complaints += probe.ask()
                samples.append(_sample(server, start))
            loaded = round(time.monotonic() - start, 1)
        complaints += crowd.complaints + probe.ask()
        _rest(server, start)
        after = _sample(server, start)
        found = meters.scrape(server.metrics)
        evictions = int(meters.total(found, "teacher_cache_evictions_total") or 0)
        complaints += _errors(log)
    return Soaked(loaded, before, after, samples, dict(crowd.counts), complaints, dict(_codes(found)), evictions)


def _codes(found: meters.Samples) -> Counter[str]:
    """Requests ended, by status, of what a daemon tells."""
    codes: Counter[str] = Counter()
    for (name, labels), value in found.items():
        if name == "teacher_requests_total":
            codes[dict(labels)["code"]] += int(value)
    return codes


class _Crowd:
    """The clients: one in each place."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._dice = random.Random(0)  # noqa: S311 - an order of clients
        self._seeds = itertools.count(1)
        self.counts: Counter[str] = Counter()
        self.complaints: list[str] = []
        self._places = [self._start(role) for role in ROLES]

    def _start(self, role: Role) -> tuple[Role, subprocess.Popen[bytes], IO[bytes], float]:
        said = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the client has gone
        command = [sys.executable, "-m", "benchmarks.soak.clients", role.kind, self._address, str(next(self._seeds))]
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=REPOSITORY)
        leaves = float("inf") if role.stays is None else time.monotonic() + self._dice.uniform(*role.stays)
        self.counts[role.kind if role.signal is signal.SIGTERM else f"{role.kind}, killed"] += 1
        return role, process, said, leaves

    def turn(self) -> None:
        """Sends away whose time has come, and puts others in the place of those who have gone."""
        for i, (role, process, said, leaves) in enumerate(self._places):
            if process.poll() is None and time.monotonic() >= leaves:
                process.send_signal(role.signal)
                process.wait()
            if process.poll() is not None:
                self._gone(role, process, said)
                self._places[i] = self._start(role)

    def leave(self) -> None:
        """Sends everybody away."""
        for role, process, _, _ in self._places:
            process.send_signal(role.signal)
        for role, process, said, _ in self._places:
            process.wait()
            self._gone(role, process, said)

    def _gone(self, role: Role, process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
        with said:
            if process.returncode not in (0, -role.signal):
                said.seek(0)
                lines = said.read().decode(errors="replace").strip().splitlines() or ["nothing"]
                self.complaints.append(f"a client ended with {process.returncode} and said: {lines[-1][:200]}")


@contextlib.contextmanager
def _crowd(address: str) -> Iterator[_Crowd]:
    crowd = _Crowd(address)
    try:
        yield crowd
    finally:
        crowd.leave()


class _Probe:
    """A question whose answer must have the same bits whatever goes on."""

    def __init__(self, address: str) -> None:
        self._stub = rpc.TeacherServiceStub(grpc.insecure_channel(address))
        query = next(questions.endless(FEWEST_CELLS, 64, HistoryMode.WINDOW, 6, seed=0))
        self._request = wire.encode_query(query, 1)
        self._expected = self._stub.Score(self._request).log_probs

    def ask(self) -> list[str]:
        """Complaints: one, or none."""
        try:
            answer: pb.ScoreResponse = self._stub.Score(self._request, timeout=120)
        except grpc.RpcError as error:
            is_full = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # what a saturated teacher says to a call
            return [] if is_full else [f"the probe was answered {error.code().name}"]
        return [] if answer.log_probs == self._expected else ["the probe was answered other bits"]


def _sample(server: Daemon, start: float) -> Sample:
    try:
        found = meters.scrape(server.metrics)
        with server.process.oneshot():
            rss, fds, threads = (
                server.process.memory_info().rss,
                server.process.num_fds(),
                server.process.num_threads(),
            )
    except psutil.NoSuchProcess:
        raise BenchmarkError("the daemon has ended") from None
    gauges = {name: meters.total(found, metric) or 0.0 for name, metric in GAUGES.items()}
    return Sample(
        seconds=time.monotonic() - start,
        rss_mib=rss / MIB,
        fds=fds,
        threads=threads,
        **gauges,
        computed=meters.total(found, "teacher_scored_positions_total") or 0.0,
        busy_seconds=meters.total(found, "teacher_compute_seconds_sum") or 0.0,
    )


def _rest(server: Daemon, start: float) -> None:
    """Waits until the daemon has noticed that everybody has gone; what it has not by then is in the verdict."""
    end = time.monotonic() + REST_SECONDS
    while time.monotonic() < end:
        now = _sample(server, start)
        if not any(getattr(now, name) for name in GAUGES):
            return
        time.sleep(0.1)


def _errors(log: IO[bytes]) -> list[str]:
    """What the daemon has logged as an error, or died of."""
    log.seek(0)
    lines = log.read().decode(errors="replace").splitlines()
    bad = [line for line in lines if ERROR_LINE.match(line) or line.startswith("Traceback")]
    return [f"the daemon's log: {line[:200]}" for line in bad]


def judge(soaked: Soaked) -> dict[str, Any]:
    """What grew, what was left, what went wrong; sound if nothing."""
    judged = soaked.samples[round(WARM_UP * len(soaked.samples)) :]
    third = max(1, len(judged) // 3)
    growth = {}
    for name, (share, anyway) in TOLERANCE.items():
        first, last = (statistics.median(getattr(s, name) for s in part) for part in (judged[:third], judged[-third:]))
        hours = [sample.seconds / 3600 for sample in judged]
        slope = stats.theilslopes([getattr(s, name) for s in judged], hours)[0] if len(judged) > 1 else 0.0
        growth[name] = {
            "first": first,
            "last": last,
            "slope_per_hour": float(slope),
            "allowed": max(share * first, anyway),
            "sound": last - first <= max(share * first, anyway),
        }
    rest = {
        name: {"before": getattr(soaked.before, name), "after": getattr(soaked.after, name), "sound": sound}
        for name, sound in [
            *((name, getattr(soaked.after, name) - getattr(soaked.before, name) <= AT_REST[name]) for name in AT_REST),
            *((name, getattr(soaked.after, name) == 0) for name in GAUGES),
        ]
    }
    unexpected = [code for code in ("INTERNAL", "UNKNOWN") if soaked.codes.get(code)]
    complaints = [*soaked.complaints, *(f"{soaked.codes[code]} requests ended with {code}" for code in unexpected)]
    span = judged[-1].seconds - judged[0].seconds
    return {
        "sound": all(part["sound"] for part in (*growth.values(), *rest.values())) and not complaints,
        "growth": growth,
        "rest": rest,
        "complaints": complaints,
        "codes": soaked.codes,
        "clients": soaked.clients,
        "evictions": soaked.evictions,
        "positions_per_second": (judged[-1].computed - judged[0].computed) / span if span else 0.0,
        "busy": (judged[-1].busy_seconds - judged[0].busy_seconds) / span if span else 0.0,
    }


def report(soaked: Soaked) -> Result:
    """The record and its tables."""
    figures = judge(soaked)
    names = {"rss_mib": "resident MiB", "fds": "file descriptors", "threads": "threads"}
    under_load = [
        [
            names[name],
            f"{found['first']:.1f}",
            f"{found['last']:.1f}",
            f"{found['allowed']:.1f}",
            f"{found['slope_per_hour']:+.2f}",
            "yes" if found["sound"] else "NO",
        ]
        for name, found in figures["growth"].items()
    ]
    labels = names | {"in_flight": "requests under way", "queue": "positions queued", "streams": "open streams"}
    labels |= {"credits": "positions granted"}
    at_rest = [
        [labels[name], f"{found['before']:g}", f"{found['after']:g}", "yes" if found["sound"] else "NO"]
        for name, found in figures["rest"].items()
    ]
    header = ["", "first third", "last third", "growth allowed", "slope an hour (Theil-Sen)", "sound"]
    tables = [
        Table("under load, medians", header, under_load),
        Table("at rest", ["", "before the clients", "after", "sound"], at_rest),
    ]
    settings = {
        "data": "none: questions drawn over the cells of a teacher with random weights",
        "seconds": soaked.seconds,
        "overrides": OVERRIDES,
        "n_layer": N_LAYER,
        "n_embd": N_EMBD,
        "roles": [
            {"kind": role.kind, "stays": role.stays, "signal": role.signal.name if role.stays else None}
            for role in ROLES
        ],
    }
    samples = [dataclasses.asdict(sample) for sample in soaked.samples]
    return Result("soak", "A long run", settings, {**figures, "samples": samples}, tables, _notes(soaked, figures))


def _notes(soaked: Soaked, figures: dict[str, Any]) -> list[str]:
    clients = ", ".join(f"{count:,} {kind}" for kind, count in sorted(figures["clients"].items()))
    codes = ", ".join(f"{code} {count:,}" for code, count in sorted(figures["codes"].items()))
    return [
        f"{soaked.seconds / 60:.1f} minutes, {len(soaked.samples)} samples, of which the first {WARM_UP:.0%} are not "
        f"judged. {figures['positions_per_second']:,.0f} positions a second computed, the model busy "
        f"{figures['busy']:.0%} of the time, {figures['evictions']:,} answers evicted.",
        f"Clients: {clients}.",
        f"Requests ended: {codes}.",
        *(figures["complaints"] or ["Nothing was complained of: by the clients, the daemon's log or the probe."]),
        f"Verdict: {'sound' if figures['sound'] else 'NOT SOUND'}.",
    ]


def draw(samples: Sequence[Sample], path: Path) -> None:
    """Resident size, descriptors, threads and what waits, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    minutes = np.array([sample.seconds / 60 for sample in samples])
    above, below = figure.subplots(2, sharex=True)
    above.plot(minutes, [sample.rss_mib for sample in samples], color="tab:blue", linewidth=1)
    above.set_ylabel("resident MiB")
    above.set_ylim(bottom=0)
    for name, label in (("fds", "descriptors"), ("threads", "threads"), ("streams", "open streams")):
        below.plot(minutes, [getattr(sample, name) for sample in samples], linewidth=1, label=label)
    below.set_ylim(bottom=0)
    below.set_xlabel("minutes")
    below.legend(fontsize="small", ncols=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
