"""A TCP proxy that misbehaves when told to: in threads, two a connection."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator

CHUNK_BYTES = 16 * 1024
POLL_SECONDS = 0.05
"""A socket in which somebody waits stays open after its close: nobody waits longer at once."""
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER that makes a close a reset."""


@dataclasses.dataclass
class Weather:
    """What happens to bytes on their way; may be changed while they travel.

    Attributes:
        delay: seconds that each chunk takes longer, in each direction.
        bits_per_second: of each direction of a connection; 0: as many as there are.
        corrupt: share of chunks in which one bit is flipped.
        refuses: new connections are reset at once.
    """

    delay: float = 0.0
    bits_per_second: float = 0.0
    corrupt: float = 0.0
    refuses: bool = False


class _Link:
    """A connection and the one behind it."""

    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near, self.far = near, far
        self.is_swallowed = False

    def close(self, with_reset: bool = False) -> None:
        for end in (self.near, self.far):
            with contextlib.suppress(OSError):
                if with_reset:
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                else:
                    end.shutdown(socket.SHUT_RDWR)
                end.close()


class Proxy:
    """Listens on a port of its own and passes connections on to `target`, HOST:PORT, which may change."""

    def __init__(self, target: str, seed: int = 0) -> None:
        self.target, self.weather = target, Weather()
        self.corrupted = self.connections = 0
        self._random = random.Random(seed)
        self._links: list[_Link] = []
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def reset(self) -> None:
        """Breaks every connection, as a host that has lost its state."""
        self._end(with_reset=True)

    def swallow(self) -> None:
        """From now on, what enters the connections that there are comes out nowhere, and nobody is told."""
        for link in self._links:
            link.is_swallowed = True

    def close(self) -> None:
        """Ends everything."""
        self._listener.close()
        self._end(with_reset=True)

    def _end(self, with_reset: bool) -> None:
        links, self._links = self._links, []
        for link in links:
            link.close(with_reset)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            host, _, port = self.target.rpartition(":")
            try:
                if self.weather.refuses:
                    raise ConnectionRefusedError
                far = socket.create_connection((host, int(port)), timeout=5)
                far.settimeout(None)
            except OSError:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                near.close()
                continue
            link = _Link(near, far)
            self._links.append(link)
            for source, sink in ((near, far), (far, near)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._pass_on, args=(link, source, sink), daemon=True).start()

    def _pass_on(self, link: _Link, source: socket.socket, sink: socket.socket) -> None:
        """One direction: read, hold until its time has come, write. A second thread writes, so that delays overlap."""
        queue: list[tuple[float, bytes]] = []
        changed = threading.Condition()

        def write() -> None:
            free_at = 0.0
            while True:
                with changed:
                    changed.wait_for(lambda: queue)
                    due, chunk = queue.pop(0)
                if not chunk:
                    link.close()
                    return
                rate = self.weather.bits_per_second
                free_at = max(free_at, time.monotonic()) + (8 * len(chunk) / rate if rate else 0)
                time.sleep(max(0.0, max(due, free_at) - time.monotonic()))
                if link.is_swallowed:
                    continue
                try:
                    sink.sendall(chunk)
                except OSError:
                    link.close()
                    return

        threading.Thread(target=write, daemon=True).start()
        for chunk in _chunks(source):
            with changed:
                queue.append((time.monotonic() + self.weather.delay, self._damage(chunk)))
                changed.notify()
        if not link.is_swallowed:
            with changed:
                queue.append((0.0, b""))
                changed.notify()

    def _damage(self, chunk: bytes) -> bytes:
        if self._random.random() >= self.weather.corrupt:
            return chunk
        self.corrupted += 1
        damaged, place = bytearray(chunk), self._random.randrange(8 * len(chunk))
        damaged[place // 8] ^= 1 << place % 8
        return bytes(damaged)


def _chunks(source: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            while not select.select([source], [], [], POLL_SECONDS)[0]:
                pass
            chunk = source.recv(CHUNK_BYTES)
        except (OSError, ValueError):  # closed meanwhile
            return
        if not chunk:
            return
        yield chunk
