"""What a daemon remembers is kept over its end: written now and then and when it drains, read when it starts.

Copying is done on the event loop, which alone may look into the table, in parts with pauses, so that nobody waits long
for it. Writing is done on another thread, no faster than a slow disk likes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence

from shared.errors import ReportableError
from teacher_server.answers import saved
from teacher_server.answers.compiled import Kept
from teacher_server.answers.config import CacheConfig
from teacher_server.answers.table import AnswerTable

log = logging.getLogger(__name__)

PART_BLOCKS = 2**15
"""Blocks of the table that are looked at for a part: some 2 MiB of rows, a few milliseconds."""
REST = 9.0
"""Between two parts the loop has this many times as long for other things as a part took."""
BYTES_PER_SECOND = 64 * 2**20
"""At which the file is written while the daemon serves."""


class Keeper:
    """Keeps the answers of one table for one scorer in the file of the settings, if there is one."""

    def __init__(self, answers: AnswerTable, numerics: str, settings: CacheConfig) -> None:
        """Remembers what an earlier daemon with this teacher has kept."""
        self._answers, self._numerics, self._settings = answers, numerics, settings
        self._computed = 0
        self._hurry = threading.Event()
        self._writing: set[asyncio.Task[None]] = set()
        self._complaint = ""
        if settings.file is not None:
            saved.clear_abandoned(settings.file)
            self._restore()

    @contextlib.asynccontextmanager
    async def keeping(self) -> AsyncIterator[None]:
        """Within the block the file is written every `save_seconds`; at its end once more."""
        if self._settings.file is None:
            yield
            return
        keeping = asyncio.create_task(self._keep_for_ever())
        try:
            yield
        finally:
            self._hurry.set()
            keeping.cancel()
            await asyncio.gather(keeping, *self._writing, return_exceptions=True)
        await self._write([self._answers.keep()])

    def _restore(self) -> None:
        path = self._settings.file
        assert path is not None
        kept = saved.read(path, self._numerics)
        if kept is None:
            return
        try:
            self._answers.restore(kept)
        except ValueError as error:
            log.warning("the remembered answers in %s are damaged (%s); starting without them", path, error)
        else:
            log.info("remembered %d answers from %s", self._answers.rows, path)

    async def _keep_for_ever(self) -> None:
        loop, seconds = asyncio.get_running_loop(), self._settings.save_seconds
        due = loop.time()
        while seconds:
            due = max(due + seconds, loop.time())
            await asyncio.sleep(due - loop.time())
            if (computed := self._answers.outcomes[2]) == self._computed:
                continue
            self._computed = computed
            writing = asyncio.create_task(self._write(await self._copy()))
            self._writing.add(writing)
            writing.add_done_callback(self._writing.discard)
            await asyncio.shield(writing)

    async def _copy(self) -> list[Kept]:
        parts = []
        began = time.monotonic()
        for part in self._answers.keep_in_parts(PART_BLOCKS):
            parts.append(part)
            await asyncio.sleep(REST * (time.monotonic() - began))
            began = time.monotonic()
        return parts

    async def _write(self, parts: Sequence[Kept]) -> None:
        path = self._settings.file
        assert path is not None
        if saved.is_foreign(path):
            self._complain(f"{path} holds no remembered answers and stays as it is: choose another cache.file")
            return
        try:
            await asyncio.to_thread(saved.write, path, parts, self._numerics, self._pause)
        except (OSError, ReportableError) as error:
            self._complain(f"could not keep the remembered answers in {path}: {error}")
        else:
            self._complaint = ""
            log.info("kept %d answers in %s", sum(len(part.key_words) for part in parts), path)

    def _pause(self, written: int) -> None:
        """On the writing thread; at the end of the daemon there are no pauses."""
        self._hurry.wait(written / BYTES_PER_SECOND)

    def _complain(self, text: str) -> None:
        """Once as long as it is the same."""
        if text != self._complaint:
            log.error(text)
        self._complaint = text
