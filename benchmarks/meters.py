"""Instruments: latencies, processor time of a process tree, and what a daemon counts."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import ConfigError

QUANTILES = (50, 95, 99)

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values of a scrape by name and labels."""


@dataclasses.dataclass(frozen=True)
class Latency:
    """Quantiles of requests' latencies, milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """Of at least one request."""
        return cls(*(1000 * float(value) for value in np.percentile(seconds, QUANTILES)))


def tree_cpu(root: psutil.Process) -> float:
    """Processor seconds, user and system, of a process and everything that it started and that still runs."""
    total = 0.0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += sum(process.cpu_times()[:2])
    return total


def tree_rss(root: psutil.Process) -> int:
    """Resident bytes of a process and everything that it started; shared pages count in each."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


@contextlib.contextmanager
def pinned(cores: Sequence[int]) -> Iterator[None]:
    """Keeps this thread, and processes that it starts meanwhile, on these cores; an empty list leaves all."""
    before = os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def scrape(address: str) -> Samples:
    """What the metrics at HOST:PORT say now; raises `ConfigError` if nobody says anything."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
            return parse(answer.read().decode())
    except OSError as error:
        raise ConfigError(f"no metrics at {address}: {error}") from None


def parse(text: str) -> Samples:
    """A Prometheus exposition."""
    return {
        (sample.name, frozenset(sample.labels.items())): float(sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float | None:
    """Sum over all samples of a name with these labels among theirs; None if there is none."""
    wanted = set(labels.items())
    values = [value for (found, theirs), value in samples.items() if found == name and wanted <= theirs]
    return sum(values) if values else None


def growth(before: Samples, after: Samples, name: str, **labels: str) -> float | None:
    """What a counter has counted between two scrapes; None if there is no such counter."""
    last = total(after, name, **labels)
    return None if last is None else last - (total(before, name, **labels) or 0.0)


def hit_rate(before: Samples, after: Samples) -> float | None:
    """Share of the positions between two scrapes that were not computed: remembered, or waited for; None if unknown."""
    asked = growth(before, after, "teacher_positions_total")
    missed = growth(before, after, "teacher_positions_total", outcome="miss")
    return 1 - (missed or 0.0) / asked if asked else None


def mean_of(before: Samples, after: Samples, histogram: str) -> float | None:
    """Mean of what a histogram has observed between two scrapes; None if nothing."""
    count = growth(before, after, f"{histogram}_count")
    return (growth(before, after, f"{histogram}_sum") or 0.0) / count if count else None


def reset_peak_rss() -> int:
    """Forgets the greatest resident size of this process, where the system can; returns the present one, bytes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return int(psutil.Process().memory_info().rss)


def peak_rss() -> int:
    """Greatest resident size of this process, since it was reset or began: bytes.

    Not `ru_maxrss` where there is better: that is never below the size of the process that started this one.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
