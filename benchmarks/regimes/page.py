"""Gathers finished runs, and makes the table and the figure of them.

python -m benchmarks.regimes.page gather RUNS        adds the runs of a pool to benchmarks/results/regimes.jsonl
python -m benchmarks.regimes.page make               writes regimes.md and docs/label-efficiency.png
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.common import REPOSITORY
from benchmarks.regimes import arms
from shared import files

RESULTS = REPOSITORY / "benchmarks" / "results"
RUNS, TABLE = RESULTS / "regimes.jsonl", RESULTS / "regimes.md"
FIGURE = REPOSITORY / "docs" / "label-efficiency.png"

Run = dict[str, Any]
Key = tuple[str, int, str, int]

NEXT_ROAD = {
    "accuracy": ("accuracy %", 100, 2),
    "nll": ("NLL", 1, 4),
    "ece": ("ECE", 1, 4),
    "time_error": ("time", 1, 4),
}
TRIPS = {
    "arrival_rate": ("arrived %", 100, 1),
    "same_route_rate": ("same route %", 100, 1),
    "hausdorff_km": ("Hausdorff km", 1, 3),
    "dtw_km": ("DTW km", 1, 2),
    "edr": ("EDR", 1, 3),
    "trip_distance_error_km": ("distance km", 1, 3),
    "trip_duration_error_s": ("duration s", 1, 1),
}


def key_of(run: Run) -> Key:
    """Teacher, labelled trips, arm, seed."""
    return run["teacher"], run["trips"], run["arm"], run["seed"]


def read(path: Path) -> list[Run]:
    """The runs that are kept."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def gather(root: Path) -> int:
    """Adds a pool's finished runs, with the metrics of their trips where these were judged; returns how many."""
    known = {key_of(run): run for run in read(RUNS)}
    found = [json.loads(line) for line in (root / "results.jsonl").read_text().splitlines()]
    for run in found:
        out = root / run["teacher"] / str(run["trips"]) / f"{run['arm']}-{run['seed']}"
        metrics = out / "evaluation" / "metrics.json"
        if metrics.exists():
            measured = json.loads(metrics.read_text())["metrics"]
            run["whole"] = {name: measured[name]["value"] for name in TRIPS}
        bound = out / "headroom.json"
        if bound.exists():
            found_bound = json.loads(bound.read_text())
            ceiling = found_bound["arms"][found_bound["ceiling"]]
            run["ceiling"] = {name: ceiling[name] for name in ("accuracy", "nll")}
        kept = {name: run[name] for name in ("teacher", "trips", "arm", "seed", "steps", "device", "test", "target")}
        kept |= {"best_epoch": run["best"]["epoch"]} | {name: run[name] for name in ("whole", "ceiling") if name in run}
        known[key_of(run)] = kept
    lines = [json.dumps(known[key]) for key in sorted(known, key=lambda key: (key[0], key[1], key[2], key[3]))]
    files.write_text(RUNS, "\n".join(lines) + "\n")
    return len(found)


def values(runs: Iterable[Run], part: str, name: str) -> dict[int, float]:
    """Of each seed that has them."""
    return {run["seed"]: run[part][name] for run in runs if part in run}


def _cell(mine: dict[int, float], base: dict[int, float], scale: float, digits: int) -> str:
    """Mean ± sd over seeds; bold where the paired difference to vanilla is unlikely to be chance (p < .01)."""
    if not mine:
        return ""
    numbers = scale * np.array(list(mine.values()))
    text = f"{numbers.mean():.{digits}f}"
    if len(numbers) > 1:
        text += f" ± {numbers.std(ddof=1):.{digits}f}"
    common = sorted(mine.keys() & base.keys())
    if len(common) >= 3:
        difference = np.array([mine[seed] - base[seed] for seed in common])
        if np.ptp(difference) > 0 and stats.ttest_1samp(difference, 0).pvalue < 0.01:
            return f"**{text}**"
    return text


def table(runs: Sequence[Run], teacher: str, trips: int) -> list[str]:
    """Of one regime, in the order of the arms."""
    here = [run for run in runs if run["trips"] == trips and (run["teacher"] == teacher or run["arm"] in FREE)]
    base = [run for run in here if run["arm"] == "vanilla"]
    columns = [("test", name, *rest) for name, rest in NEXT_ROAD.items()]
    columns += [("whole", name, *rest) for name, rest in TRIPS.items()]
    lines = ["| arm | seeds | steps | " + " | ".join(label for _, _, label, _, _ in columns) + " |"]
    lines.append("|---" * (len(columns) + 3) + "|")
    for arm in arms.ALL:
        mine = [run for run in here if run["arm"] == arm.name]
        if not mine:
            continue
        cells = [
            _cell(values(mine, part, name), {} if mine == base else values(base, part, name), scale, digits)
            for part, name, _, scale, digits in columns
        ]
        lines.append(f"| {arm.text} | {len(mine)} | {mine[0]['steps']:,} | " + " | ".join(cells) + " |")
    return lines


FREE = {arm.name for arm in arms.ARMS if not arm.teaches and not arm.samples}
"""Arms that no teacher has a part in."""
TITLES = {"all": "A teacher of all 35,000 trips", "own": "A teacher of the student's own trips"}


def page(runs: Sequence[Run]) -> str:
    """All regimes."""
    lines = ["<!-- python -m benchmarks.regimes.page make -->", ""]
    for teacher, title in TITLES.items():
        for trips in sorted({run["trips"] for run in runs if run["teacher"] == teacher}):
            if teacher == "own" and trips == max(regime.trips for regime in arms.REGIMES):
                continue
            lines += [f"### {title}, {trips:,} labelled trips", "", *table(runs, teacher, trips), ""]
    return "\n".join(lines)


def figure(runs: Sequence[Run]) -> None:
    """Accuracy and NLL against labelled trips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown: list[tuple[str, str, str, dict[str, Any]]] = [
        ("vanilla", "ceiling", "ceiling (headroom)", {"color": "#3b7d3b", "linestyle": ":"}),
        ("default", "test", "this method", {"color": "#0b62a4", "marker": "D"}),
        (
            "unsampled-long",
            "test",
            "without sampled trips, as many steps",
            {"color": "#0b62a4", "marker": "D", "mfc": "none", "linestyle": "--"},
        ),
        ("former", "test", "KL to the teacher's answer", {"color": "#c7651a", "marker": "s"}),
        (
            "long",
            "test",
            "labels alone, as many steps as this method",
            {"color": "#767676", "marker": "^", "mfc": "none"},
        ),
        ("vanilla", "test", "labels alone", {"color": "#767676", "marker": "o"}),
    ]
    drawing, panels = pyplot.subplots(1, 2, figsize=(9, 4.1), layout="constrained")
    for panel, (name, label) in zip(panels, (("accuracy", "next road, %"), ("nll", "NLL, nats")), strict=True):
        of_all = [run for run in runs if run["teacher"] == "all"]
        for arm, part, text, style in shown:
            mine = [run for run in of_all if run["arm"] == arm and part in run]
            points = []
            for trips in sorted({run["trips"] for run in mine}):
                of = np.array([run[part][name] for run in mine if run["trips"] == trips])
                points.append((trips, of.mean(), of.std(ddof=1) if len(of) > 1 else math.nan))
            if points:
                x, y, spread = map(np.array, zip(*points, strict=True))
                scale = 100 if name == "accuracy" else 1
                panel.errorbar(x, scale * y, scale * np.nan_to_num(spread), label=text, **style)
        panel.set(xscale="log", xlabel="labelled trips", ylabel=label)
        panel.set_xticks([regime.trips for regime in arms.REGIMES], [f"{regime.trips:,}" for regime in arms.REGIMES])
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    drawing.savefig(FIGURE, dpi=110)


def main() -> int:
    """Gathers or makes."""
    parser = argparse.ArgumentParser("benchmarks.regimes.page", description=main.__doc__)
    parser.add_argument("what", choices=("gather", "make"))
    parser.add_argument("runs", type=Path, nargs="*")
    given = parser.parse_args()
    if given.what == "gather":
        print(sum(gather(root) for root in given.runs))
        return 0
    runs = read(RUNS)
    files.write_text(TABLE, page(runs))
    figure(runs)
    print(page(runs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
