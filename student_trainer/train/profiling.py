"""Where the time of a training step goes: a table of its stages, and a trace of a few steps.

OUT/profile.json   milliseconds of each stage of every step that counts, and their summary
OUT/trace.json     `torch.profiler`'s trace, for chrome://tracing or ui.perfetto.dev
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shared import files

log = logging.getLogger(__name__)

STAGES = {
    "data_wait": "waiting for batches",
    "transfer": "copies to the device",
    "network_forward": "road network, forward",
    "forward": "student, forward",
    "teacher_wait": "waiting for the teacher",
    "loss": "losses",
    "backward": "student, backward",
    "network_backward": "road network, backward",
    "ranks": "waiting for other ranks",
    "optimizer": "optimizer",
    "record": "recording CUDA graphs",
    "graph": "the whole step, as a CUDA graph",
}
"""Stages of a step, as the stopwatch names them, in order."""
WARM_STEPS = 5
"""Not counted: compilers, caches and the first batches have their own costs."""
TRACED_STEPS = 3


class Profile:
    """Collects the stages of every step; `trace` also records `TRACED_STEPS` steps in full."""

    def __init__(self, out: Path, trace: bool) -> None:
        self._out = out
        self._steps: list[dict[str, float]] = []
        self._tracer = _tracer(out / "trace.json") if trace else None
        if self._tracer is not None:
            self._tracer.start()

    def add_step(self, stages: Mapping[str, float], wall: float) -> None:
        """Counts a step: seconds by stage, as the stopwatch has them, and of the whole."""
        self._steps.append({stage: 1000 * seconds for stage, seconds in {**stages, "step": wall}.items()})
        if self._tracer is not None:
            self._tracer.step()

    def close(self) -> None:
        """Logs the table and writes the files."""
        if self._tracer is not None:
            self._tracer.stop()
        if not self._steps:
            return
        counted = self._steps[WARM_STEPS:] or self._steps
        summary = summarise(counted)
        log.info("profile of %d steps:\n%s", len(counted), table(summary))
        files.write_json(self._out / "profile.json", {"summary": summary, "steps": counted})


def summarise(steps: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, median and 95th percentile (milliseconds) and share of the step, of every stage and of the `step`.

    `other` is what no stage has counted.
    """
    wall = np.array([step["step"] for step in steps])
    columns = {stage: np.array([step.get(stage, 0.0) for step in steps]) for stage in STAGES}
    columns["other"] = wall - sum(columns.values())
    return {
        stage: {
            "mean_ms": float(values.mean()),
            "p50_ms": float(np.percentile(values, 50)),
            "p95_ms": float(np.percentile(values, 95)),
            "share": float(values.sum() / wall.sum()),
        }
        for stage, values in {**columns, "step": wall}.items()
        if stage in ("other", "step") or values.any()
    }


def table(summary: Mapping[str, Mapping[str, float]]) -> str:
    """The summary for people."""
    lines = [f"{'stage':24}{'mean ms':>10}{'p50':>10}{'p95':>10}{'share':>9}"]
    for stage, row in summary.items():
        name = STAGES.get(stage, {"other": "everything else", "step": "step"}.get(stage, stage))
        figures = f"{row['mean_ms']:10.1f}{row['p50_ms']:10.1f}{row['p95_ms']:10.1f}{100 * row['share']:7.1f} %"
        lines.append(f"{name:24}{figures}")
    return "\n".join(lines)


def _tracer(path: Path) -> Any:
    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(path))
        log.info("trace of %d steps: %s (open it at ui.perfetto.dev)", TRACED_STEPS, path)

    schedule = torch.profiler.schedule(wait=WARM_STEPS, warmup=1, active=TRACED_STEPS, repeat=1)
    return torch.profiler.profile(schedule=schedule, on_trace_ready=write)
