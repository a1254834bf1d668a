"""The soak: what it calls sound, and a short one for real."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.soak import run
from benchmarks.soak.run import Sample, Soaked
from shared.log import TextFormatter

REST = Sample(0.0, 300.0, 20, 11, 0, 0, 0, 0, 0, 0)
BUSY = Sample(0.0, 310.0, 30, 11, 9, 400, 6, 100, 0, 0)


def soaked(growing: dict[str, float] | None = None, samples: int = 60, **values: Any) -> Soaked:
    """A sound run, but for what grows by so much a sample and for what is given."""
    growing = growing or {}
    seen = [
        dataclasses.replace(
            BUSY,
            seconds=30.0 * i,
            computed=1000.0 * i,
            busy_seconds=27.0 * i,
            **{name: getattr(BUSY, name) + step * i for name, step in growing.items()},
        )
        for i in range(samples)
    ]
    made = Soaked(30.0 * samples, REST, REST, seen, {"stay": 3}, [], {"OK": 5, "CANCELLED": 2}, 7)
    return dataclasses.replace(made, **values)


def test_a_steady_daemon_is_sound() -> None:
    figures = run.judge(soaked())
    assert figures["sound"]
    assert figures["positions_per_second"] == pytest.approx(1000 / 30)
    assert figures["busy"] == pytest.approx(0.9)


@pytest.mark.parametrize(("name", "step"), [("rss_mib", 0.5), ("fds", 0.1), ("threads", 0.1)])
def test_growth_is_not(name: str, step: float) -> None:
    figures = run.judge(soaked({name: step}))
    assert not figures["sound"]
    assert [found for found, part in figures["growth"].items() if not part["sound"]] == [name]
    assert figures["growth"][name]["slope_per_hour"] == pytest.approx(120 * step)


@pytest.mark.parametrize("name", ["in_flight", "queue", "streams", "credits", "fds", "threads"])
def test_what_is_left_behind_is_not(name: str) -> None:
    after = dataclasses.replace(REST, **{name: getattr(REST, name) + 10})
    figures = run.judge(soaked(after=after))
    assert not figures["sound"]
    assert [found for found, part in figures["rest"].items() if not part["sound"]] == [name]


@pytest.mark.parametrize("values", [{"complaints": ["other bits"]}, {"codes": {"OK": 5, "INTERNAL": 1}}])
def test_complaints_are_not(values: dict[str, Any]) -> None:
    found = run.report(soaked(**values))
    assert not found.figures["sound"]
    assert "NOT SOUND" in found.markdown()


def test_errors_in_the_log_are_complaints(tmp_path: Path) -> None:
    """Lines as the daemon writes them."""
    log = tmp_path / "log"
    with log.open("w+b") as stream:
        for level in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
            record = logging.LogRecord("teacher", level, "", 1, "said E at %d", (level,), None)
            stream.write(f"{TextFormatter().format(record)}\n".encode())
        found = run._errors(stream)
    assert [line[-7:] for line in found] == ["E at 40", "E at 50"]


@pytest.mark.long
@pytest.mark.integration
def test_a_short_one(tmp_path: Path) -> None:
    """All that the long one looks at, but for growth: in seconds nothing finds its level."""

    def has_seen_enough(samples: Sequence[Sample], codes: Counter[str]) -> bool:
        has_ended = all(codes[code] for code in ("OK", "CANCELLED", "INVALID_ARGUMENT"))
        return has_ended and max(sample.streams for sample in samples) >= 2

    done = run.run(20, 0.5, tmp_path, has_seen_enough)
    figures = run.judge(done)
    assert figures["complaints"] == []
    assert all(part["sound"] for part in figures["rest"].values()), figures["rest"]
    assert has_seen_enough(done.samples, Counter(done.codes))
    assert {"stay", "stay, killed", "visit", "deaf", "deaf, killed"} <= done.clients.keys()
    run.report(done).write(tmp_path / "soak")
    run.draw(done.samples, tmp_path / "soak.png")
    assert "Verdict" in (tmp_path / "soak.md").read_text()
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
