"""mosec: raw bytes over HTTP; it counts requests. A wait of 0 would mean its default, 10 ms."""

from __future__ import annotations

import sys
from typing import Any

from mosec import Server, Worker

from benchmarks.peers import rows


class Teacher(Worker):  # type: ignore[misc]
    """One process with the model; called with a batch of requests."""

    def __init__(self) -> None:
        self._model = rows.Model()

    def deserialize(self, data: bytes) -> rows.Rows:
        """Bytes of a request -> rows."""
        return rows.from_bytes(data)

    def serialize(self, data: Any) -> bytes:
        """Scores -> bytes of an answer."""
        return bytes(data.tobytes())

    def forward(self, data: list[rows.Rows]) -> list[rows.Float16]:
        """A batch of requests."""
        return self._model.score_batch(data)


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(rows.port()), "--timeout", "120000"]
    server = Server()
    server.append_worker(Teacher, num=1, max_batch_size=rows.MAX_REQUESTS, max_wait_time=int(1000 * rows.WAIT_SECONDS))
    server.run()
