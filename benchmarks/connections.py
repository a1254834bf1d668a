"""What connections cost a daemon that say nothing, or little: memory, CPU time, and the wait of who asks meanwhile.

    python -m benchmarks.connections --teacher teacher.safetensors --connections 256,2000,6000
    python -m benchmarks.connections --teacher teacher.safetensors --certificate t.crt --key t.key --ca ca.pem

`silent` connections send nothing, `greeted` ones speak HTTP/2 and then nothing (in the clear), `shaking` ones begin TLS
and then nothing (with a certificate). It must be the only user of the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import resource
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil

from benchmarks import daemon
from shared.channel import ChannelConfig
from shared.rpc.credentials import open_channel
from shared.rpc.teacher.v1 import teacher_pb2_grpc as rpc
from shared.wire import HistoryMode, ScoreQuery, encode_query

GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The preface of HTTP/2 and empty settings."""
SETTLE_SECONDS = 2.0
GIVEN_UP_SECONDS = 13.0
"""After which a daemon has closed those that do not get as far as HTTP/2."""
QUESTIONS = 200
ONE = np.ones(1, np.int32)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of so many connections of a kind.

    Attributes:
        kind, wanted: what was opened.
        opened: descriptors that the daemon has for them.
        left: the same after `GIVEN_UP_SECONDS`.
        kib: resident memory of each, KiB.
        cpu_us: CPU time of each while they were opened.
        median_ms, slowest_ms: of a question of somebody else meanwhile; the slowest of a hundred.
    """

    kind: str
    wanted: int
    opened: int
    left: int
    kib: float
    cpu_us: float
    median_ms: float
    slowest_ms: float

    def row(self) -> str:
        """Of a table in Markdown."""
        values = [f"{self.kib:.0f}", f"{self.cpu_us:.0f}", f"{self.median_ms:.2f}", f"{self.slowest_ms:.1f}"]
        return (
            f"| {self.kind} | " + " | ".join([f"{self.wanted:,}", f"{self.opened:,}", f"{self.left:,}", *values]) + " |"
        )


HEADER = (
    "| connections | wanted | open | open after 15 s | KiB each | CPU µs each | question ms, median | 99 % |\n"
    "|---|---:|---:|---:|---:|---:|---:|---:|"
)


def hello() -> bytes:
    """The beginning of TLS."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.set_alpn_protocols(["h2"])
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="teacher").do_handshake()
    return outgoing.read()


@contextlib.contextmanager
def opened(address: str, kind: str, count: int) -> Iterator[None]:
    """So many connections of a kind, until the block ends."""
    host, _, port = address.rpartition(":")
    say = {"silent": b"", "greeted": GREETING, "shaking": hello()}[kind]
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(say)
        yield


def measure(
    process: psutil.Process,
    stub: rpc.TeacherServiceStub,
    address: str,
    kind: str,
    count: int,
    wait: float = GIVEN_UP_SECONDS,
) -> Measured:
    """Opens connections to a daemon, whose process this is, asks meanwhile, and closes them."""
    memory, files, cpu = process.memory_info().rss, process.num_fds(), _cpu(process)
    with opened(address, kind, count):
        time.sleep(SETTLE_SECONDS)
        spent, there = _cpu(process) - cpu, process.num_fds() - files
        grown = process.memory_info().rss - memory
        times = sorted(_ask(stub) for _ in range(QUESTIONS))
        time.sleep(wait)
        left = process.num_fds() - files
    time.sleep(SETTLE_SECONDS)  # until the daemon has noticed that they are closed
    each = max(1, there)
    at = times[QUESTIONS // 2], times[int(0.99 * QUESTIONS)]
    return Measured(
        kind, count, there, left, grown / 1024 / each, 1e6 * spent / each, *(1000 * seconds for seconds in at)
    )


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _ask(stub: rpc.TeacherServiceStub) -> float:
    """Seconds of one question."""
    request = encode_query(ScoreQuery(HistoryMode.WINDOW, ONE, ONE, ONE, ONE), 1)
    began = time.perf_counter()
    stub.Score(request, timeout=60)
    return time.perf_counter() - began


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True)
    parser.add_argument("--connections", default="256,2000,6000")
    parser.add_argument("--certificate", type=Path)
    parser.add_argument("--key", type=Path)
    parser.add_argument("--ca", type=Path)
    arguments = parser.parse_args()
    counts = [int(count) for count in arguments.connections.split(",")]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    overrides = [f"max_connections={max(counts) + 100}", "engine.device=cpu"]
    if arguments.certificate is not None:
        overrides += [f"tls.certificate={arguments.certificate}", f"tls.key={arguments.key}"]
    kinds = ("silent", "greeted") if arguments.certificate is None else ("silent", "shaking")
    print(HEADER)
    with daemon.serve(arguments.teacher, *overrides) as served:
        channel: grpc.Channel = open_channel(served.address, ChannelConfig(ca=arguments.ca))
        stub = rpc.TeacherServiceStub(channel)
        for kind in kinds:
            for count in counts:
                print(measure(served.process, stub, served.address, kind, count).row(), flush=True)
        channel.close()


if __name__ == "__main__":
    main()
