"""Gathers finished runs, and makes the tables and the figure of them.

python -m benchmarks.regimes.page gather RUNS        adds the runs of a pool to benchmarks/results/regimes.jsonl
python -m benchmarks.regimes.page make               writes regimes.md, the tables of two pages of docs/results and the
                                                     figure docs/label-efficiency.png
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import REPOSITORY
from benchmarks.regimes import arms, runs, tables
from benchmarks.regimes.runs import RESULTS, Run
from shared import files

TABLE = RESULTS / "regimes.md"
FIGURE = REPOSITORY / "docs" / "label-efficiency.png"
PAGES = tuple(REPOSITORY / "docs" / "results" / name for name in ("regimes.md", "parts.md", "learning_rate.md"))


def figure(found: Sequence[Run]) -> None:
    """Accuracy and NLL against labelled trips."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown: list[tuple[str, str, str, str, dict[str, Any]]] = [
        ("all", "vanilla", "ceiling", "ceiling (headroom)", {"color": "#3b7d3b", "linestyle": ":"}),
        ("all", "default", "test", "this method", {"color": "#0b62a4", "marker": "D"}),
        (
            "all-0.0005",
            "former",
            "test",
            "KL to the teacher's answer (coarser cells)",
            {"color": "#c7651a", "marker": "s"},
        ),
        ("all", "long", "test", "labels alone, as many steps", {"color": "#767676", "marker": "^", "mfc": "none"}),
        ("all", "vanilla", "test", "labels alone", {"color": "#767676", "marker": "o"}),
    ]
    drawing, panels = pyplot.subplots(1, 2, figsize=(9, 4.1), layout="constrained")
    for panel, (name, label) in zip(panels, (("accuracy", "next road, %"), ("nll", "NLL, nats")), strict=True):
        for teacher, arm, part, text, style in shown:
            mine = [run for run in found if (run["teacher"], run["arm"]) == (teacher, arm) and part in run]
            mine = [run for run in mine if runs.rate_of(run) == arms.USUAL_RATE]
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
        print(sum(runs.gather(root) for root in given.runs))
        return 0
    found = runs.read(runs.RUNS)
    table = tables.page(found)
    files.write_text(TABLE, table)
    for path in PAGES:
        files.write_text(path, tables.filled(path.read_text(encoding="utf-8"), found))
    figure(found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
