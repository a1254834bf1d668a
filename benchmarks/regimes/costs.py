"""What each part of distillation costs: the time of a step, and what it waits for the teacher.

    python -m benchmarks.regimes.costs --data STORE --teacher ADDRESS --sampled DIR

Short runs of every arm in turns, on one core, so that what else the machine does meets all; the table goes to
benchmarks/results/regimes_costs.md. A step's ratio to labels alone is of the same turn.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import rotated
from benchmarks.regimes import arms
from benchmarks.regimes.pool import ENVIRONMENT
from benchmarks.regimes.runs import RESULTS
from shared import files
from shared.training import logbook

TABLE = RESULTS / "regimes_costs.md"
NAMES = ("vanilla", "document", "head", "target", "unsampled", "default")
REGIME = arms.Regime(1_000, 3, 32)
MIXED, SAMPLED_TRIPS = arms.Regime(120, 2, 64), 2_880
"""Where trips are sampled: as many steps, of batches in the mixture of 1,000 labelled trips with 24,000."""
LOGGED = 10
"""Steps a line of metrics.jsonl."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one run.

    Attributes:
        step_ms: median over lines of metrics.jsonl, the first one left out.
        wait_ms: the part of it that waited for the teacher.
        loss_ms: the part of it that computed losses.
        positions_per_s: positions of the student a second.
    """

    step_ms: float
    wait_ms: float
    loss_ms: float
    positions_per_s: float


def cost_of(lines: list[dict[str, float]]) -> Cost:
    """The cost of a run from its metrics; raises `ValueError` if it has made fewer than two lines of steps."""
    steps = [line for line in lines if "perf/step_ms" in line][1:]
    if not steps:
        raise ValueError("too few steps to measure")

    def median(name: str) -> float:
        return statistics.median(line.get(name, 0.0) for line in steps)

    names = ("step_ms", "teacher_wait_ms", "loss_ms", "positions_per_s")
    return Cost(*(median(f"perf/{name}") for name in names))


def measure(name: str, data: Path, teacher: str, sampled: Path, out: Path) -> Cost:
    """Trains an arm for a few dozen steps."""
    arm = dataclasses.replace(arms.arm(name), sampled_trips=SAMPLED_TRIPS)
    told = arms.overrides(arm, MIXED if arm.samples else REGIME, 0, arm.samples)
    if arm.samples:
        told = [f"optim.epochs={MIXED.epochs}" if text.startswith("optim.epochs=") else text for text in told]
    command = [sys.executable, "-m", "student_trainer", "train", "--data", str(data), "--out", str(out)]
    command += ["--teacher", teacher if arm.teaches else "none", *told]
    command += [f"log.every={LOGGED}", "log.headroom=false", "log.tensorboard=false", "batch.val_trips=64"]
    command += ["runtime.device=cpu", "runtime.threads=1"]
    command += [f"batch.sampled={sampled}"] if arm.samples else []
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)
    return cost_of(logbook.read(out / "metrics.jsonl"))


def table(turns: list[dict[str, Cost]]) -> str:
    """Medians over the turns, and each turn's ratios."""
    lines = [
        "| arm | ms a step | times labels alone: median | least | most | losses, ms | waiting, ms | positions/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in turns[0]:
        costs = [turn[name] for turn in turns]
        ratios = [turn[name].step_ms / turn["vanilla"].step_ms for turn in turns]
        middle = Cost(*(statistics.median(column) for column in zip(*map(dataclasses.astuple, costs), strict=True)))
        lines.append(
            f"| {arms.arm(name).text} | {middle.step_ms:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f} | "
            f"{max(ratios):.2f} | {middle.loss_ms:.1f} | {middle.wait_ms:.2f} | {middle.positions_per_s:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures and writes the table."""
    parser = argparse.ArgumentParser("benchmarks.regimes.costs", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="store")
    parser.add_argument("--teacher", required=True, help="address")
    parser.add_argument("--sampled", type=Path, required=True, help="sampled trips")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    turns = []
    for number in range(given.turns):
        turn = {}
        for name in rotated(NAMES, number):
            with tempfile.TemporaryDirectory() as folder:
                turn[name] = measure(name, given.data, given.teacher, given.sampled, Path(folder) / "run")
        turns.append({name: turn[name] for name in NAMES})
    text = table(turns)
    files.write_text(
        TABLE, f"# What a step costs\n\n{given.turns} turns; made by `benchmarks.regimes.costs`.\n\n{text}"
    )
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
