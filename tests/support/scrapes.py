"""What a daemon says of itself over HTTP, and waiting for it to say so."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

PATIENCE = 60
"""Seconds until a server that does not answer fails the test."""


def samples(metrics: str | None) -> dict[tuple[str, tuple[str, ...]], float]:
    """The metrics over HTTP: (name, label values by label name) -> value."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=PATIENCE) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "gave up waiting"
        time.sleep(0.01)
