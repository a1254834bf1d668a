"""The heap is trimmed again and again, off the loop, and where it cannot be, nothing happens."""

from __future__ import annotations

import asyncio
import gc
import threading

import pytest

from teacher_server.serve import memory


def test_it_is_trimmed_until_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[tuple[int, bool]] = []

    def trim(pad: int) -> int:
        trimmed.append((pad, threading.current_thread() is threading.main_thread()))
        return 1

    async def test() -> None:
        task = asyncio.create_task(memory.trim_for_ever(0.001))
        async with asyncio.timeout(30):
            while len(trimmed) < 3:
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    monkeypatch.setattr(memory, "find_trim", lambda: trim)
    asyncio.run(test())
    assert set(trimmed) == {(0, False)}


def test_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert memory.find_trim() is None
    asyncio.run(asyncio.wait_for(memory.trim_for_ever(0.001), 30))


def test_glibc_has_it() -> None:
    trim = memory.find_trim()
    if trim is None:
        pytest.skip("the C library is not glibc")
    assert trim(0) in (0, 1)


def test_what_is_there_is_not_searched_again() -> None:
    kept: list[list[int]] = [[] for _ in range(1000)]
    with memory.settled():
        assert gc.get_freeze_count() > 1000
        tracked = {id(found) for found in gc.get_objects()}
        assert not tracked & {id(found) for found in kept}
    assert gc.get_freeze_count() == 0
