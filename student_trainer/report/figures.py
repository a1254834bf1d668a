"""The report's charts as PNG and SVG, for papers and slides; the HTML draws the same values by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

REAL = "#555555"
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours that colour-blind people tell apart (Okabe and Ito, 2008), one an arm, then from the start again."""
REFERENCE = "#8A9099"
"""Of rules that are no models, and of floors: dashed."""
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "report",
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of models are no formulas
}


def colours(content: dict[str, Any]) -> dict[str, str]:
    """Of each arm, and of those that only have curves."""
    found = {arm["name"]: REFERENCE for arm in content["arms"] if arm["role"] == "reference"}
    names = [*(arm["name"] for arm in content["arms"]), *content["curve_arms"].values()]
    models = [name for name in dict.fromkeys(names) if name not in found]
    return found | {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(models)}


def write(content: dict[str, Any], folder: Path) -> list[Path]:
    """Writes every figure twice, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(STYLE):
        for name, figure in draw(content):
            for suffix, metadata in ((".png", {"Software": ""}), (".svg", {"Date": ""})):
                path = folder / f"{name}{suffix}"
                figure.savefig(path, dpi=160, metadata=metadata)
                written.append(path)
    return written


def draw(content: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Every figure with its name."""
    arms, colour = content["arms"], colours(content)
    dashed = {arm["name"] for arm in arms if arm["role"] == "reference"}
    for quantity, first in content["histograms"][arms[0]["name"]].items():
        figure, axes = _axes()
        sides = [(arm["name"], content["histograms"][arm["name"]][quantity]) for arm in arms]
        _histogram(axes, sides, colour, dashed)
        axes.set(xlabel=f"{first['label']}, {first['unit']}", ylabel="share")
        yield f"distribution-{quantity}", _done(figure, axes)
    if content["reliability"]:
        figure, axes = _axes()
        axes.plot([0, 1], [0, 1], color=REAL, linestyle=":", label="calibrated")
        for arm in arms:
            for label, model in _labelled(arm["name"], [m for m in arm["models"] if m in content["reliability"]]):
                curve = content["reliability"][model]
                axes.plot(curve["confidence"], curve["accuracy"], "o-", ms=3, color=colour[arm["name"]], label=label)
        axes.set(xlabel="confidence", ylabel="share right", xlim=(0, 1), ylim=(0, 1))
        yield "reliability", _done(figure, axes)
    for record, words in content["curve_labels"].items():
        runs = [run for run, curves in content["curves"].items() if record in curves]
        if runs:
            figure, axes = _axes()
            for arm in dict.fromkeys(content["curve_arms"][run] for run in runs):
                for label, run in _labelled(arm, [run for run in runs if content["curve_arms"][run] == arm]):
                    steps, values = content["curves"][run][record]
                    axes.plot(steps, values, color=colour[arm], label=label)
            if (floor := content["curve_floors"].get(record)) is not None:
                axes.axhline(floor["value"], color=REFERENCE, linestyle="--", label=floor["label"])
            for line in content["curve_ceilings"].get(record, ()):
                axes.axhline(line["value"], color=colour[line["arm"]], linestyle=":", label=line["label"])
            axes.set(xlabel="step", ylabel=f"{words['label']}, {words['unit']}")
            yield f"curve-{record.replace('/', '-').replace('_', '-')}", _done(figure, axes)
    yield "statuses", _statuses(content)


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    return figure, figure.subplots()


def _done(figure: Figure, axes: Axes) -> Figure:
    axes.legend()
    return figure


def _labelled(arm: str, runs: Sequence[str]) -> list[tuple[str, str]]:
    """Runs with what the legend calls them: an arm once."""
    label = arm if len(runs) < 2 else f"{arm} ({len(runs)} seeds)"
    return [(label if index == 0 else "_seed", run) for index, run in enumerate(runs)]


def _histogram(
    axes: Axes, sides: Sequence[tuple[str, dict[str, Any]]], colour: dict[str, str], dashed: Collection[str]
) -> None:
    edges = sides[0][1]["edges"]
    axes.stairs(sides[0][1]["real"][:-1], edges, fill=True, color=REAL, alpha=0.3, label="real")
    for name, histogram in sides:
        line = "--" if name in dashed else "-"
        axes.stairs(histogram["generated"][:-1], edges, color=colour[name], linestyle=line, label=name)


def _statuses(content: dict[str, Any]) -> Figure:
    figure, axes = _axes()
    names = content["names"]
    kinds = list(content["search"][names[0]]["statuses"])
    left = np.zeros(len(names))
    greys = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 0.9, len(kinds)))
    for kind, shade in zip(kinds, greys, strict=True):
        shares = np.array(
            [content["search"][n]["statuses"].get(kind, 0) / content["search"][n]["pairs"] for n in names]
        )
        axes.barh(names, shares, left=left, color=shade, label=kind.replace("_", " "))
        left += shares
    axes.set(xlabel="share of the pairs", xlim=(0, 1))
    axes.invert_yaxis()
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure
