"""A study's findings as HTML: a section of the report, and a page of its own."""

from __future__ import annotations

import base64
import dataclasses
import html
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import FileFormatError
from student_trainer.data import documents

FORMAT = "tune-study/1"
FIGURES = {
    "optimization_history": "Every trial, and the best so far",
    "intermediate_values": "Epoch by epoch",
    "slice": "Value against each setting",
    "param_importances": "What matters",
    "contour": "Pairs of settings",
    "parallel_coordinate": "All settings at once",
    "pareto_front": "Accuracy against the time of a step",
    "timeline": "When each trial ran",
}
"""Pictures that `tune` leaves, in the order of the page."""
METRICS = ("accuracy", "nll")
NOTHING = "\N{EN DASH}"


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """What `tune` has written.

    Attributes:
        summary: `study_summary.json`.
        final: `final_results.json`, if the final runs are done.
        figures: PNG bytes by name.
    """

    summary: dict[str, Any]
    final: dict[str, Any] | None
    figures: Mapping[str, bytes]


def read(folder: Path) -> Study:
    """Reads OUT/optuna_results/<study>.

    Raises:
        FileFormatError: it is not there or not what `tune` has written.
    """
    summary = documents.read(folder / "study_summary.json", FORMAT, "tune")
    path = folder / "final_results.json"
    final = documents.read(path, FORMAT, "tune") if path.exists() else None
    pictures = {name: folder / "figures" / f"{name}.png" for name in FIGURES}
    study = Study(summary, final, {name: path.read_bytes() for name, path in pictures.items() if path.is_file()})
    try:
        section(study)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{folder} is damaged ({type(error).__name__}: {error}); run `tune` again") from None
    return study


def page(study: Study) -> str:
    """A document of its own, which opens offline."""
    style = importlib.resources.files("student_trainer.report.assets").joinpath("report.css").read_text("utf-8")
    title = _text(titled(study.summary["study"]))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">'
        f'<style>{style}</style></head><body><main class="wrap"><h1>{title}</h1>{section(study)}</main></body></html>\n'
    )


def titled(name: str) -> str:
    """The heading of a study: its name says that it is one, or is told so."""
    return name.capitalize() if "study" in name.lower() else f"Study {name}"


def section(study: Study) -> str:
    """The findings, the final runs, every trial, the pictures."""
    parts = [_lead(study), _verdicts(study.final), _final_table(study.final), _trials(study.summary)]
    parts.append(_pictures(study.figures))
    return "\n".join(part for part in parts if part)


def _lead(study: Study) -> str:
    summary, settings = study.summary, study.summary["settings"]
    search = _phase(summary, 1)
    words = [f"Objective {settings['objective']}; every trial trains seeds {_list(settings['seeds'])}."]
    if search is not None:
        states = ", ".join(f"{count} {state}" for state, count in search["states"].items())
        lost = f" Attempts that were lost and made again: {search['lost']}." if search["lost"] else ""
        words.append(f"{search['filled']} of {search['slots']} trials have ended: {states}.{lost}")
    if generations := summary["generations"]:
        words.append(f"CMA-ES completed {generations['complete']} generations of {generations['population']}.")
    if summary["best_trial"] is not None:
        words.append(f"Best: {summary['best_trial']}, {_point(summary['best_params'])}.")
    if summary["pareto_front"]:
        words.append(f"On the Pareto front: {_list(summary['pareto_front'])}.")
    return f'<p class="lead">{_text(" ".join(words))}</p>'


def _verdicts(final: dict[str, Any] | None) -> str:
    if final is None:
        return '<p class="hint">The final runs are not done: whether the teacher helps is open.</p>'
    items = []
    for name in METRICS:
        metric = final["metrics"][name]
        better = (metric["difference"] > 0) == metric["higher_is_better"]
        kind = ("better" if better else "worse") if metric["is_real"] else ""
        items.append(f'<li class="{kind}">{_text(final["sentences"][name])}</li>')
    return f'<ul class="verdicts">{"".join(items)}</ul>'


def _final_table(final: dict[str, Any] | None) -> str:
    if final is None:
        return ""
    head = ["Seed"]
    for name in METRICS:
        label = final["metrics"][name]["label"] + (", %" if name == "accuracy" else "")
        head += [f"vanilla: {label}", f"distilled: {label}", "difference"]
    rows = []
    for index, seed in enumerate(final["seeds"]):
        cells = [str(seed)]
        for name in METRICS:
            values = final["metrics"][name]["values"]
            vanilla, distilled = values["vanilla"][index], values["distilled"][index]
            cells += [_value(name, vanilla), _value(name, distilled), _value(name, distilled - vanilla, signed=True)]
        rows.append(cells)
    mean = ["mean ± sd"]
    for name in METRICS:
        metric = final["metrics"][name]
        mean += [_mean(name, metric["vanilla"]), _mean(name, metric["distilled"])]
        mean.append(f"{_value(name, metric['difference'], signed=True)} ± {_value(name, metric['std'])}")
    rows.append(mean)
    if (left := final.get("headroom")) is not None:
        ceiling = ["ceiling, estimated on validation trips"]
        for name in METRICS:
            best = final["metrics"][name]["distilled"]["mean"] + left[name]
            ceiling += [NOTHING, _value(name, best), f"{_value(name, left[name], signed=True)} to the distilled"]
        rows.append(ceiling)
    caption = (
        f"{final['epochs']} epochs, measured on all trips of the {final['split']} split, weights of the epoch with the "
        f"best validation accuracy; {_point(final['params']) or 'settings of train'}."
    )
    return f'<h3>The best setting against vanilla</h3><p class="hint">{_text(caption)}</p>' + _table(head, rows)


def _trials(summary: dict[str, Any]) -> str:
    search = _phase(summary, 1)
    if search is None:
        return ""
    names = list(summary["settings"]["space"])
    shown = [name for name in names if any(name in trial["params"] for trial in search["trials"])]
    head = ["Trial", "state", *[name.rpartition(".")[2] for name in shown], "epochs", "value", "seconds", "teacher, s"]
    rows = []
    vanilla = _phase(summary, 0)
    if vanilla is not None:
        rows += [_trial(trial, shown, "vanilla") for trial in vanilla["trials"] if trial["fills_its_slot"]]
    rows += [_trial(trial, shown, trial["name"]) for trial in search["trials"]]
    return "<h3>Trials</h3>" + _table(head, rows)


def _trial(trial: dict[str, Any], shown: Sequence[str], name: str) -> list[str]:
    lost = trial["state"] == "fail" and not trial["fills_its_slot"]
    state = "lost, made again" if lost else {"fail": "failed"}.get(trial["state"], trial["state"])
    values = trial["values"] or []
    return [
        name,
        state,
        *[_short(trial["params"].get(parameter)) for parameter in shown],
        _short(trial["epochs"]),
        " / ".join(f"{value:.5g}" for value in values) or NOTHING,
        _short(trial["seconds"]),
        _short(trial["teacher_seconds"]),
    ]


def _pictures(figures: Mapping[str, bytes]) -> str:
    drawn = [
        f"<figure><figcaption>{_text(FIGURES[name])}</figcaption>"
        f'<img alt="{_text(FIGURES[name])}" '
        f'src="data:image/png;base64,{base64.b64encode(content).decode()}"></figure>'
        for name, content in figures.items()
    ]
    return f'<h3>Pictures of the search</h3><div class="pictures">{"".join(drawn)}</div>' if drawn else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    titles = "".join(f"<th>{_text(title)}</th>" for title in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _phase(summary: dict[str, Any], number: int) -> dict[str, Any] | None:
    return next((phase for phase in summary["phases"] if phase["phase"] == number), None)


def _value(name: str, value: float, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if name == "accuracy" else f"{value:{sign}.4f}"


def _mean(name: str, arm: dict[str, Any]) -> str:
    return f"{_value(name, arm['mean'])} ± {_value(name, arm['std'])}"


def _point(params: dict[str, Any] | None) -> str:
    return ", ".join(f"{name} {_short(value)}" for name, value in (params or {}).items())


def _short(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _list(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values))


def _text(text: str) -> str:
    """Escaped, and with a minus before a negative number, which a hyphen is too short for."""
    return html.escape(re.sub(r"(?<![\w.-])-(?=[\d.])", "\N{MINUS SIGN}", text))
