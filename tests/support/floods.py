"""A caller that means harm: HTTP/2 as raw frames, so that messages stay unfinished and no client's limits matter."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections import defaultdict
from collections.abc import Iterable, Sequence

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS = 1, 1, 4
FRAME_BYTES = 16384
FIRST_WINDOW = 65535


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _number(value: int) -> bytes:
    """An integer with a prefix of 7 bits, as HPACK writes it."""
    if value < 127:
        return bytes([value])
    value -= 127
    out = bytearray([127])
    while value >= 128:
        out.append(value % 128 + 128)
        value //= 128
    return bytes([*out, value])


def header_block(method: str, metadata: Iterable[tuple[str, str]] = ()) -> bytes:
    """The headers of a gRPC call, uncompressed."""
    fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "teacher"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
        *metadata,
    ]
    return b"".join(
        b"\0" + _number(len(name)) + name.encode() + _number(len(value)) + value.encode() for name, value in fields
    )


def header_frames(stream: int, block: bytes) -> bytes:
    """Headers in as many frames as they need."""
    parts = [block[start : start + FRAME_BYTES] for start in range(0, len(block), FRAME_BYTES)]
    frames = [frame(CONTINUATION if i else HEADERS, 0, stream, part) for i, part in enumerate(parts[:-1])]
    kind = CONTINUATION if frames else HEADERS
    return b"".join([*frames, frame(kind, END_HEADERS, stream, parts[-1])])


class Connection:
    """One connection that opens calls and sends as many bytes on each as the server lets it, and never ends one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._next = 1
        self._first_window = FIRST_WINDOW
        self._windows: dict[int, int] = defaultdict(lambda: self._first_window)
        self._windows[0] = FIRST_WINDOW
        self._unsent: dict[int, bytes | memoryview] = {}
        self.reset: set[int] = set()
        """Streams that the server has ended."""
        self.sent = 0
        """Bytes of messages."""
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, address: str, speaks: bool = True) -> Connection:
        """Connects to HOST:PORT; without a word if it does not speak."""
        host, _, port = address.rpartition(":")
        made = cls(*await asyncio.open_connection(host, int(port)))
        if speaks:
            made._writer.write(PREFACE + frame(SETTINGS, 0, 0))
            made._reading = asyncio.create_task(made._read())
        return made

    def call(self, method: str, body: bytes | memoryview = b"", metadata: Sequence[tuple[str, str]] = ()) -> int:
        """Opens a call that sends this much of a message (with its five bytes of length), and stays open."""
        stream, self._next = self._next, self._next + 2
        if self._writer.transport.is_closing():
            return stream
        self._writer.write(header_frames(stream, header_block(method, metadata)))
        self._unsent[stream] = body
        self._send(stream)
        return stream

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed it."""
        return self._reader.at_eof() or (self._reading is not None and self._reading.done())

    async def close(self) -> None:
        """Ends all at once."""
        if self._reading is not None:
            self._reading.cancel()
        self._writer.transport.abort()

    def _send(self, stream: int) -> None:
        while len(body := self._unsent.get(stream, b"")):
            room = min(self._windows[0], self._windows[stream], FRAME_BYTES, len(body))
            if room <= 0 or self._writer.transport.is_closing():
                return
            self._writer.write(frame(DATA, 0, stream, bytes(body[:room])))
            self._windows[0] -= room
            self._windows[stream] -= room
            self._unsent[stream] = body[room:]
            self.sent += room

    async def _read(self) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                head = await self._reader.readexactly(9)
                size, (kind, flags, stream) = int.from_bytes(head[:3], "big"), struct.unpack(">BBI", head[3:])
                self._take(kind, flags, stream, await self._reader.readexactly(size))
                await self._writer.drain()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == SETTINGS and not flags & ACK:
            for start in range(0, len(payload), 6):
                name, value = struct.unpack(">HI", payload[start : start + 6])
                if name == 4:
                    for known in self._unsent:
                        self._windows[known] += value - self._first_window
                    self._first_window = value
            self._writer.write(frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._writer.write(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._windows[stream] += int.from_bytes(payload, "big")
        elif kind == RESET or (kind == HEADERS and flags & END_STREAM):
            self.reset.add(stream)
            self._unsent.pop(stream, None)
        for waiting in [stream] if stream else list(self._unsent):
            self._send(waiting)
