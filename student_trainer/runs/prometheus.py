"""A run's metrics for Prometheus, over HTTP for as long as the run lives.

Names are those of docs/metrics.md: `trainer_` + the name with `_` for `/`, milliseconds as seconds. What passes per
step is also summed, because rates of sums are right whatever the scrape interval is:
`trainer_stage_seconds_total{stage}` has each stage's time, and `step` that of whole steps.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import pydantic

import shared
from shared.address import Address

PREFIX = "trainer_"
STAGE = re.compile(r"perf/(\w+)_ms")
"""Milliseconds of a stage, a step."""
TOLD = ("run", "revision", "store")
"""What `trainer_run_info` says of a run."""


def check_place(text: str) -> str:
    """Off, or HOST:PORT, as it was written; raises `ValueError` saying how to write one."""
    if text != "off" and Address.parse(text).path:
        raise ValueError("metrics are served over TCP: expected HOST:PORT or off")
    return text


PlaceText = Annotated[str, pydantic.AfterValidator(check_place)]
"""Where metrics are served, or off."""


def name_of(name: str) -> str:
    """What Prometheus calls a metric: perf/teacher_wait_ms is trainer_perf_teacher_wait_seconds."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", re.sub(r"(?<!_per)_s$|_ms$", "_seconds", name))


def value_of(name: str, value: float) -> float:
    """A metric's value in Prometheus' units."""
    return value / 1000 if name.endswith("_ms") else value


class Prometheus:
    """One sink: the newest values as gauges, and sums over the run's steps in this process."""

    def __init__(self, place: str, about: Mapping[str, str], after: int) -> None:
        """Serves from now on.

        Args:
            place: HOST:PORT; port 0 lets the system choose.
            about: what is told of the run, by `TOLD`.
            after: the step at which the run stands.

        Raises:
            OSError: it cannot be served there.
        """
        import prometheus_client
        from prometheus_client import CollectorRegistry, Counter, Gauge, Info

        address = Address.parse(place)
        self._registry = CollectorRegistry()
        self._gauge = Gauge
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # a series more for each counter
        prometheus_client.ProcessCollector(registry=self._registry)
        Info("trainer_run", "What is trained.", registry=self._registry).info({name: about[name] for name in TOLD})
        build = Info("trainer_build", "The software.", registry=self._registry)
        build.info({"version": shared.__version__})
        self._gauges: dict[str, Any] = {}
        self._steps = Counter("trainer_steps_total", "Optimizer steps done.", registry=self._registry)
        self._positions = Counter(
            "trainer_positions_total", "Positions trained, all ranks together.", registry=self._registry
        )
        self._seconds = Counter(
            "trainer_stage_seconds_total",
            "Time of each stage of a step; `step`: whole steps, `teacher_wait`: the loss waited for a teacher.",
            ("stage",),
            registry=self._registry,
        )
        for stage in ("step", "teacher_wait", "data_wait"):
            self._seconds.labels(stage)
        self._told = Gauge("trainer_updated_timestamp_seconds", "When the run last told.", registry=self._registry)
        self._step = after
        self._server, self._thread = prometheus_client.start_http_server(
            address.port, address.host, registry=self._registry
        )
        self.address = address.with_port(self._server.server_port)

    def write(self, step: int | None, values: Mapping[str, float]) -> None:
        """See `Sink`; the values of a step are means over the steps since the last ones."""
        for name, value in values.items():
            self._gauge_of(name).set(value_of(name, value))
        self._told.set(time.time())
        if step is None or "perf/step_ms" not in values:  # of validation
            return
        steps, self._step = max(0, step - self._step), step
        self._steps.inc(steps)
        self._positions.inc(steps * values["perf/step_ms"] / 1000 * values.get("perf/positions_per_s", 0.0))
        for stage, milliseconds in _stages(values):
            self._seconds.labels(stage).inc(steps * milliseconds / 1000)

    def close(self) -> None:
        """Stops serving and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _gauge_of(self, name: str) -> Any:
        if name not in self._gauges:
            self._gauges[name] = self._gauge(name_of(name), f"{name} of docs/metrics.md.", registry=self._registry)
        return self._gauges[name]


def _stages(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if stage := STAGE.fullmatch(name):
            yield stage[1], max(0.0, value)
