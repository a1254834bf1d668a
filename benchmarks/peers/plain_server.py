"""A grpc.aio server with a batcher of its own: what one writes in an afternoon. Raw bytes, unary."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import grpc

from benchmarks.peers import rows

METHOD = "Score"
SERVICE = "peers.Rows"


class Batcher:
    """Waits for the first request, then at most `WAIT_SECONDS` for up to `MAX_REQUESTS`."""

    def __init__(self) -> None:
        self._model, self._thread = rows.Model(), ThreadPoolExecutor(1)
        self._queue: asyncio.Queue[tuple[rows.Rows, asyncio.Future[rows.Float16]]] = asyncio.Queue()

    async def score(self, content: bytes, context: grpc.aio.ServicerContext) -> bytes:
        """The handler of a call."""
        answer: asyncio.Future[rows.Float16] = asyncio.get_running_loop().create_future()
        await self._queue.put((rows.from_bytes(content), answer))
        return (await answer).tobytes()

    async def run(self) -> None:
        """Cuts batches for ever."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self._queue.get()]
            until = loop.time() + rows.WAIT_SECONDS
            while len(batch) < rows.MAX_REQUESTS:
                try:
                    async with asyncio.timeout_at(until):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            scores = await loop.run_in_executor(self._thread, self._model.score_batch, [asked for asked, _ in batch])
            for (_, answer), score in zip(batch, scores, strict=True):
                if not answer.done():  # its caller may have gone
                    answer.set_result(score)


async def serve() -> None:
    """Serves until the process is ended."""
    batcher, server = Batcher(), grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(batcher.score)
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler})])
    server.add_insecure_port(f"127.0.0.1:{rows.port()}")
    await server.start()
    await batcher.run()


if __name__ == "__main__":
    asyncio.run(serve())
