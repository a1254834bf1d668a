"""The file of remembered answers while a daemon serves: when it is written, and when it is left alone."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import numpy as np
import pytest
from support.row_fakes import answers

from shared.wire import HistoryMode, ScoreQuery
from teacher_server.answers import saved
from teacher_server.answers.config import CacheConfig
from teacher_server.answers.table import AnswerTable
from teacher_server.serve.cache_file import Keeper

PATIENCE = 30


def make_table() -> AnswerTable:
    return AnswerTable(2**20, np.arange(17, dtype=np.int64), 99)


def learn(table: AnswerTable, token: int) -> None:
    one = np.ones(1, np.int32)
    asked = table.ask(ScoreQuery(HistoryMode.WINDOW, one * token, one, one, one))
    into = np.empty(8, np.int64)
    count, _ = table.take(asked, 100, into, 0)
    table.fill(into[:count], answers(table.batch(into[:count])))
    assert table.collect(asked)


def rows(path: Path) -> int:
    kept = saved.read(path, "n") if path.exists() else None
    return 0 if kept is None else len(kept.key_words)


async def until_rows(path: Path, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while rows(path) != count:
            await asyncio.sleep(0.005)


def test_written_when_something_was_computed_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path, table = tmp_path / "answers", make_table()
    written: list[int] = []
    write = saved.write
    monkeypatch.setattr(saved, "write", lambda *args: (written.append(1), write(*args)))
    keeper = Keeper(table, "n", CacheConfig(file=path, save_seconds=0.01))

    async def serve() -> None:
        async with keeper.keeping():
            learn(table, 1)
            await until_rows(path, 1)
            before = len(written)
            await asyncio.sleep(0.1)  # nothing was computed: nothing is written
            assert len(written) == before == 1
            learn(table, 2)
            await until_rows(path, 2)

    asyncio.run(serve())
    assert len(written) == 3
    warm = make_table()
    Keeper(warm, "n", CacheConfig(file=path))
    assert warm.rows == 2 and "remembered 2 answers" in caplog.text


def test_at_the_end_only(tmp_path: Path) -> None:
    path, table = tmp_path / "answers", make_table()

    async def serve() -> None:
        async with Keeper(table, "n", CacheConfig(file=path, save_seconds=0)).keeping():
            learn(table, 1)
            await asyncio.sleep(0.05)
            assert not path.exists()

    asyncio.run(serve())
    assert rows(path) == 1


def test_the_end_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow: the last writing is the one that stays, and there are no pauses any more."""
    path, table = tmp_path / "answers", make_table()
    monkeypatch.setattr("teacher_server.serve.cache_file.BYTES_PER_SECOND", 1)

    async def serve() -> None:
        async with Keeper(table, "n", CacheConfig(file=path, save_seconds=0.01)).keeping():
            learn(table, 1)
            async with asyncio.timeout(PATIENCE):
                while not list(tmp_path.glob(".answers.*")):
                    await asyncio.sleep(0.005)
            learn(table, 2)

    asyncio.run(serve())
    assert rows(path) == 2
    assert [found.name for found in tmp_path.iterdir()] == ["answers"]


def test_a_file_of_something_else_is_never_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path, table = tmp_path / "notes", make_table()
    path.write_text("of somebody else")

    async def serve() -> None:
        async with Keeper(table, "n", CacheConfig(file=path, save_seconds=0.01)).keeping():
            for token in (1, 2, 3):
                learn(table, token)
                await asyncio.sleep(0.05)

    asyncio.run(serve())
    assert path.read_text() == "of somebody else"
    assert caplog.text.count("stays as it is: choose another cache.file") == 1


def test_no_file(tmp_path: Path) -> None:
    async def serve() -> None:
        async with Keeper(make_table(), "n", CacheConfig()).keeping():
            pass

    asyncio.run(serve())
    assert list(tmp_path.iterdir()) == []
