"""The page of all parts: every figure beside its limit, the prediction and what it is compared with."""

from __future__ import annotations

from typing import Any

from benchmarks.common import Table
from benchmarks.gpu.predictions import PREDICTIONS, Prediction

FAILURE_LINES = 12


def markdown(found: dict[str, Any]) -> str:
    """The page of a run's `gpu.json`."""
    blocks = ["# On an accelerator", _about(found)]
    for name, part in found["parts"].items():
        rows = [_row(name, figure) for figure in part["figures"]]
        took = f"{name}: {part['seconds']:.0f} s of at most {part['limit']:.0f} s" + _ending(part)
        if rows:
            header = ["figure", "value", "unit", "limit here", "H100: limit", "predicted", "wanted", "compared"]
            blocks.append(Table(took, header, rows).markdown())
        else:
            blocks.append(f"**{took}**")
        blocks += [f"- {note}" for note in part["notes"]]
        blocks += [_failure(failure) for failure in part["failures"]]
    memory = [
        [name, f"{part['resident_mib']:,.0f}", "" if part["device_mib"] is None else f"{part['device_mib']:,.0f}"]
        for name, part in found["parts"].items()
    ]
    blocks.append(Table("Most memory by part, MiB", ["part", "resident", "on the device"], memory).markdown())
    blocks.append(
        "- Limit here: by rates measured in the same process. H100: limits of its data sheet and predictions made "
        "before the code had run on one; wanted: what was planned then.\n"
        "- Compared: the value divided by that of what is named.\n"
        "- On the device: sampled every two seconds, of all processes."
    )
    return "\n\n".join(blocks) + "\n"


def _about(found: dict[str, Any]) -> str:
    machine = found["parts"].get("machine", {}).get("details", {}).get("machine", {})
    words = [found["date"], f"device {machine.get('device', found['device'])}", f"{machine.get('cores', '?')} cores"]
    words += [f"{name} {machine[name]}" for name in ("driver", "torch", "cuda", "triton", "numpy") if machine.get(name)]
    done = sum(not part["failures"] for part in found["parts"].values())
    words.append(f"{done} of {len(found['parts'])} parts without a failure")
    return ", ".join(words)


def _ending(part: dict[str, Any]) -> str:
    if part["code"] is None:
        return ", stopped at its limit"
    return f", {len(part['failures'])} failed" if part["failures"] else ""


def _row(part: str, figure: dict[str, Any]) -> list[str]:
    prediction = PREDICTIONS.get(f"{part}/{figure['name']}", Prediction())
    compared = f"{figure['ratio']:.2f} x {figure['baseline']}" if figure["ratio"] is not None else ""
    name = figure["name"] + (f" ({figure['note']})" if figure["note"] else "")
    limit = "" if figure["limit"] is None else _number(figure["limit"])
    return [
        name, _number(figure["value"]), figure["unit"], limit, prediction.limit, prediction.expected, prediction.wanted,
        compared,
    ]  # fmt: skip


def _number(value: float | bool | None) -> str:
    if value is None:
        return "not finite"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _failure(failure: dict[str, str]) -> str:
    lines = failure["error"].strip().splitlines()[-FAILURE_LINES:]
    return "\n".join([f"Failed: {failure['what']}", "", "```", *lines, "```"])
