"""`answer`: asks a teacher everything that training on a store will ask, and writes the answers into a file."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import shared
from shared import answers_file, claims, progress
from shared.answers_file import Answers, AnswersHeader
from shared.arrays import Float16
from shared.errors import FileFormatError
from shared.store import SplitName, Store, Trips, read_trips
from teacher_server.offline.config import OVERWRITE, AnswerConfig
from teacher_server.offline.questions import Questions, Roads, check_roads, check_teacher, collect
from teacher_server.offline.teachers import Opened, opened

log = logging.getLogger(__name__)

SPLITS: tuple[SplitName, ...] = ("train", "val")
"""What training reads of a store."""
SAMPLED = "sampled.json"
"""In a directory of sampled trips, beside their arrays."""


def run(settings: AnswerConfig) -> None:
    """Writes the answers file; prints what it is as a line of JSON.

    Raises:
        ConfigError: it is there already, or another job writes it.
        CompatibilityError: the teacher does not fit the store or the window.
        DataError: sampled trips are on other roads.
        FileFormatError: the store, sampled trips or the teacher file cannot be read.
        TeacherError: the server refused, or did not answer.
    """
    start = time.monotonic()
    with claims.file(settings.out):
        claims.check_file(settings.out, settings.overwrite, OVERWRITE)
        store = Store(settings.data)
        with opened(settings) as teacher:
            check_teacher(teacher.tokeniser, teacher.max_window, teacher.place, store, settings.windows)
            roads = Roads.of(store)
            asked = collect(roads, trips_of(settings, store), settings.windows, settings.max_steps)
            log.info("%d distinct positions in %d rows", asked.positions, len(asked.history_lengths))
            answers = Answers(
                history_lengths=asked.history_lengths,
                history_tokens=asked.history_tokens,
                choices=asked.choices,
                list_lengths=roads.list_lengths,
                list_tokens=roads.list_tokens,
                log_probs=answered(teacher, asked),
            )
        header = AnswersHeader(
            revision=teacher.revision,
            tokeniser=teacher.tokeniser,
            windows=tuple(sorted(set(settings.windows))),
            max_window=teacher.max_window,
            max_steps=settings.max_steps,
            store=store.fingerprint,
            sampled=tuple(map(str, settings.sampled)),
            compute_dtype=teacher.compute_dtype,
            device=teacher.device,
            made_by=f"answer {shared.__version__}",
        )
        answers_file.write(settings.out, header, answers)
    print(json.dumps(_summary(settings.out, header, asked, time.monotonic() - start)))


def trips_of(settings: AnswerConfig, store: Store) -> Iterator[Trips]:
    """All trips that are asked about, split by split.

    Raises:
        FileFormatError: a directory does not hold sampled trips.
        DataError: they are on other roads.
    """
    for split in SPLITS:
        yield store.trips(split, "auto")
    for folder in settings.sampled:
        check_sampled(folder)
        trips = read_trips(folder, "auto", "sample them again")
        check_roads(trips, len(store.road_token), str(folder))
        yield trips


def check_sampled(folder: Path) -> None:
    """Raises `FileFormatError` if a directory does not hold sampled trips."""
    if not (folder / SAMPLED).is_file():
        raise FileFormatError(f"{folder} is no directory of sampled trips: it has no {SAMPLED}")


def answered(teacher: Opened, asked: Questions) -> Float16:
    """The answers to all questions, in order."""
    found = [np.empty(0, np.float16)]
    with progress.bar(total=asked.positions, unit="position", unit_scale=True) as bar:
        for query in asked.queries(teacher.positions, teacher.candidates):
            found.append(teacher.ask(query))
            bar.update(query.positions)
    return np.concatenate(found)


def _summary(out: Path, header: AnswersHeader, asked: Questions, seconds: float) -> dict[str, object]:
    return {
        "out": str(out),
        "revision": header.revision,
        "fingerprint": header.tokeniser.fingerprint,
        "windows": header.windows,
        "rows": len(asked.history_lengths),
        "positions": asked.positions,
        "bytes": out.stat().st_size,
        "seconds": round(seconds, 1),
    }
