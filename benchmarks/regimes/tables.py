"""Tables of the runs: of each regime all arms, and what they have over equal steps on labels alone; short ones."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmarks.regimes import arms
from benchmarks.regimes.runs import HIGHER_IS_BETTER, NEXT_ROAD, TRIPS, Run, p_value, paired, rate_of, values
from shared.arrays import Float64

SIGNIFICANCE = 0.01
FREE = {arm.name for arm in arms.ARMS if arm.is_free}
"""Arms that no teacher has a part in."""
COARSE = "cells of 0.0005°"
TITLES = {
    "all": "A teacher of all 35,000 trips",
    "own": "A teacher of the student's own trips",
    "all-0.0005": f"A teacher of all 35,000 trips, {COARSE}",
    "own-0.0005": f"A teacher of the student's own trips, {COARSE}",
}
"""Of teachers. The last two have the coarser cells that were once the default."""
Key = tuple[str, str]
"""Teacher and arm."""
SHORT: dict[Key, str] = {
    ("all", "vanilla"): "labels alone",
    ("all", "long"): "labels alone, as many steps as the default",
    ("all", "times-once"): "the default, times counted once",
    ("all", "default"): "the default",
}
"""The lines of the short table, with what it calls them."""
SHORT_COLUMNS = ("accuracy", "nll", "time_error", "same_route_rate", "hausdorff_km", "dtw_km", "edr")
"""Its metrics."""
PARTS = {
    "head": "head alone",
    "target": "target alone",
    "unsampled": "both",
    "former": "KL to the teacher's answer, λ .3",
    "fading": "the same, λ 1, fading over the first half",
    "document": "the design document's formula",
    "smoothing": "control: label smoothing",
    "uniform": "control: KL to an even answer",
}
"""The lines of the table of parts, with what it calls them: arms in the steps of labels alone."""
PARTS_TEACHER = "all-0.0005"
"""Its teacher."""
PARTS_COLUMNS = ("accuracy", "nll", "time_error", "dtw_km")
"""Its metrics."""
RATED = {"vanilla": "labels alone", "long": "labels alone, as many steps", "default": "the default"}
"""The lines of the table of learning rates, with what it calls them."""
GAINS_TEACHERS = {"all": "all trips", "own": "these trips alone"}
"""The teachers of the table of what the default gains, with what it says that they have seen."""
FULL_SEEDS = 5
"""Of an arm that has all its seeds."""
COLUMNS = {name: ("test", *rest) for name, rest in NEXT_ROAD.items()}
COLUMNS |= {name: ("whole", *rest) for name, rest in TRIPS.items()}
"""Part of a run, label, scale and digits of a metric."""


def row(*cells: object) -> str:
    """A line of a table."""
    return "| " + " | ".join(map(str, cells)) + " |"


def header(*labels: str) -> list[str]:
    """The first two lines of a table."""
    return [row(*labels), "|---" * len(labels) + "|"]


def _spread(numbers: Sequence[float], digits: int, sign: str = "") -> str:
    """Mean ± standard deviation over seeds."""
    text = f"{np.mean(numbers):{sign}.{digits}f}"
    return text if len(numbers) == 1 else f"{text} ± {np.std(numbers, ddof=1):.{digits}f}"


def _of(runs: Sequence[Run], teacher: str, trips: int, rate: float = arms.USUAL_RATE) -> dict[str, list[Run]]:
    """A regime's runs with a learning rate by arm, in the order of the arms; arms without a teacher belong to each."""
    here = [run for run in runs if run["trips"] == trips and rate_of(run) == rate]
    here = [run for run in here if run["teacher"] == teacher or run["arm"] in FREE]
    return {arm.name: mine for arm in arms.ALL if (mine := [run for run in here if run["arm"] == arm.name])}


def _cell(mine: Mapping[int, float], base: Mapping[int, float], scale: float, digits: int) -> str:
    """Bold where the paired difference to `base` is unlikely to be chance."""
    if not mine:
        return ""
    return _bold(_spread([scale * value for value in mine.values()], digits), p_value(paired(mine, base)))


def _bold(text: str, p: float | None) -> str:
    """Bold where a difference is unlikely to be chance."""
    return text if p is None or p >= SIGNIFICANCE else f"**{text}**"


def table(runs: Sequence[Run], teacher: str, trips: int) -> list[str]:
    """Of one regime, in the order of the arms."""
    by_arm = _of(runs, teacher, trips)
    lines = header("arm", "seeds", "steps", *(label for _, label, _, _ in COLUMNS.values()))
    for name, mine in by_arm.items():
        base = [] if name == "vanilla" else by_arm.get("vanilla", [])
        cells = [
            _cell(values(mine, part, metric), values(base, part, metric), scale, digits)
            for metric, (part, _, scale, digits) in COLUMNS.items()
        ]
        lines.append(row(arms.arm(name).text, len(mine), f"{mine[0]['steps']:,}", *cells))
    return lines


def over_equal_steps(runs: Sequence[Run], teacher: str, trips: int) -> list[str]:
    """What the arms of as many steps have over labels alone for as many; nothing if there are none."""
    by_arm = _of(runs, teacher, trips)
    long = by_arm.get("long", [])
    labels = [label for _, label, _, _ in COLUMNS.values()]
    found = []
    for name, mine in by_arm.items():
        if name == "long" or not arms.arm(name).is_long:
            continue
        cells = {
            metric: paired(values(mine, part, metric), values(long, part, metric))
            for metric, (part, _, _, _) in COLUMNS.items()
        }
        if seeds := len(cells["accuracy"]):
            told = (_difference(cells[metric], *rest) for metric, (_, _, *rest) in COLUMNS.items())
            found.append(row(arms.arm(name).text, seeds, *told))
    return [*header("arm, minus labels alone for as many steps", "seeds", *labels), *found] if found else []


def _difference(differences: Float64, scale: float, digits: int) -> str:
    """Over seeds, with its p-value where there are enough; bold where it is unlikely to be chance."""
    if not len(differences):
        return ""
    text, p = _spread(list(scale * differences), digits, "+"), p_value(differences)
    return text if p is None else f"{_bold(text, p)} (p {p:.1g})"


def page(runs: Sequence[Run]) -> str:
    """All regimes."""
    lines = ["<!-- python -m benchmarks.regimes.page make -->", ""]
    for teacher, title in TITLES.items():
        for trips in sorted({run["trips"] for run in runs if run["teacher"] == teacher}):
            if teacher.startswith("own") and trips == max(regime.trips for regime in arms.REGIMES):
                continue
            lines += [f"### {title}, {trips:,} labelled trips", "", *table(runs, teacher, trips), ""]
            if equal := over_equal_steps(runs, teacher, trips):
                lines += [*equal, ""]
    return "\n".join(lines)


def _marked(numbers: Mapping[Key, Sequence[float]], digits: int, is_more: bool, spread: bool) -> dict[Key, str]:
    """Of each key the mean over its seeds, or nothing; the best one bold."""
    means = {name: round(float(np.mean(of)), digits) for name, of in numbers.items() if of}
    best = (max if is_more else min)(means.values(), default=math.nan)
    texts = {name: _spread(numbers[name], digits) if spread else f"{mean:.{digits}f}" for name, mean in means.items()}
    return {name: f"**{texts[name]}**" if means[name] == best else texts[name] for name in means}


def short(runs: Sequence[Run]) -> str:
    """The table of the page: the best value of a regime is bold."""
    lines = header("labelled trips", "(seeds)", "steps", *(COLUMNS[metric][1] for metric in SHORT_COLUMNS))
    for trips in sorted({run["trips"] for run in runs}):
        by_arm = {key: mine for key in SHORT if (mine := _of(runs, key[0], trips).get(key[1]))}
        columns = []
        for metric in SHORT_COLUMNS:
            part, _, scale, digits = COLUMNS[metric]
            numbers = {name: [scale * v for v in values(mine, part, metric).values()] for name, mine in by_arm.items()}
            is_more = metric in HIGHER_IS_BETTER
            columns.append(_marked(numbers, min(digits, 3), is_more, spread=metric == "accuracy"))
        for number, (key, mine) in enumerate(by_arm.items()):
            first = "" if number else f"{trips:,}"
            cells = (column.get(key, "") for column in columns)
            lines.append(row(first, f"{SHORT[key]} ({len(mine)})", f"{mine[0]['steps']:,}", *cells))
    return "\n".join(lines) + "\n"


def parts(runs: Sequence[Run]) -> str:
    """What parts and controls have over labels alone in the same steps; see `_brief`."""
    labels = [COLUMNS[metric][1] for metric in PARTS_COLUMNS]
    heads = [f"{regime.trips:,}: {labels[0]}" for regime in arms.REGIMES]
    lines = header("minus labels alone", *itertools.chain(*([head, *labels[1:]] for head in heads)))
    by_regime = [_of(runs, PARTS_TEACHER, regime.trips) for regime in arms.REGIMES]
    for name, text in PARTS.items():
        cells = [_briefs(by_arm, name, "vanilla", PARTS_COLUMNS) for by_arm in by_regime]
        lines.append(row(text, *itertools.chain(*cells)))
    return "\n".join(lines) + "\n"


def gains(runs: Sequence[Run]) -> str:
    """What the default has over labels alone, with each teacher; see `_brief`."""
    lines = header(
        "teacher of", "labelled trips", "minus labels alone", *(label for _, label, _, _ in COLUMNS.values())
    )
    for teacher, text in GAINS_TEACHERS.items():
        for regime in arms.REGIMES:
            by_arm = _of(runs, teacher, regime.trips)
            for base, steps in (("vanilla", "as usual"), ("long", "as many steps")):
                if "default" in by_arm and base in by_arm:
                    cells = _briefs(by_arm, "default", base, COLUMNS)
                    lines.append(row(text, f"{regime.trips:,}", steps, *cells))
    return "\n".join(lines) + "\n"


def rates(runs: Sequence[Run]) -> str:
    """The arms of `RATED` with each learning rate that one of them has runs of: means over seeds."""
    lines = header("labelled trips", "learning rate", "(seeds)", *(label for _, label, _, _ in COLUMNS.values()))
    for regime in arms.REGIMES:
        for rate in sorted({rate_of(run) for run in runs if run["trips"] == regime.trips}):
            by_arm = _of(runs, "all", regime.trips, rate)
            for name, text in RATED.items():
                if not (mine := by_arm.get(name)):
                    continue
                cells = [
                    f"{scale * np.mean(list(found.values())):.{digits}f}"
                    if (found := values(mine, part, metric))
                    else ""
                    for metric, (part, _, scale, digits) in COLUMNS.items()
                ]
                lines.append(row(f"{regime.trips:,}", f"{rate:g}", f"{text} ({len(mine)})", *cells))
    return "\n".join(lines) + "\n"


def _briefs(by_arm: Mapping[str, Sequence[Run]], arm: str, base: str, metrics: Iterable[str]) -> list[str]:
    """Of each metric what an arm has over another."""
    found = []
    for metric in metrics:
        part, _, scale, digits = COLUMNS[metric]
        mine, other = values(by_arm.get(arm, ()), part, metric), values(by_arm.get(base, ()), part, metric)
        found.append(_brief(scale * paired(mine, other), digits))
    return found


def _brief(differences: Float64, digits: int) -> str:
    """The mean over seeds; bold: unlikely to be chance; in parentheses: the seeds where there are fewer than five."""
    if not len(differences):
        return ""
    text = _bold(f"{differences.mean():+.{digits}f}", p_value(differences))
    return text if len(differences) >= FULL_SEEDS else f"{text} ({len(differences)})"


PLACES = {"the short table": short, "what the default gains": gains, "parts": parts, "learning rates": rates}
"""Tables of pages, by the names of their places there."""
MARKER = re.compile(r"<!-- page make: (.*) -->")
"""Before such a place."""


def filled(text: str, runs: Sequence[Run]) -> str:
    """A page with its tables made anew, each in its place.

    Raises:
        ValueError: it has a place for no known table, or a marker without a table after it, or the same one twice.
    """
    for name in MARKER.findall(text):
        if name not in PLACES:
            raise ValueError(f"there is no table {name!r}, but {', '.join(PLACES)}")
        text = _put(text, name, PLACES[name](runs))
    return text


def _put(text: str, name: str, table: str) -> str:
    place = re.compile(rf"(?<=<!-- page make: {name} -->\n\n)(\|.*\n)+")
    text, count = place.subn(lambda _: table, text)
    if count != 1:
        raise ValueError(f"the page has {count} places for {name}")
    return text
