"""What `prepare` prints: the store's facts as a table for people, from its manifest alone."""

from __future__ import annotations

from typing import Any

from shared.floors import RULES
from student_trainer.prepare.collisions import degrees, is_enough
from student_trainer.prepare.words import counted, reasons


def render(manifest: dict[str, Any]) -> str:
    """The text, without a trailing newline."""
    parts = [_sizes(manifest), _floors(manifest), _collisions(manifest), _findings(manifest)]
    return "\n\n".join(part for part in parts if part)


def _sizes(manifest: dict[str, Any]) -> str:
    s = manifest["statistics"]
    lines = [
        f"network   {counted(s['roads'], 'road')}, {counted(s['successor_pairs'], 'successor pair')} (at most "
        f"{s['max_out_degree']} a road), {counted(s['road_edges'], 'road-graph edge')}, "
        f"{counted(s['road_types'], 'road class', 'es')}, {counted(s['zones'], 'zone')}"
    ]
    for split, facts in manifest["splits"].items():
        dropped = reasons(manifest["dropped"][split])
        lines.append(
            f"{split:<9} {counted(facts['trips'], 'trip')}, {counted(facts['steps'], 'step')}, "
            f"longest {counted(facts['longest_trip'], 'road')}" + (f"; dropped: {dropped}" if dropped else "")
        )
    v = manifest["vocabulary"]
    lines.append(
        f"tokens    {counted(v['cells'], 'cell')} ({v['kind']}), PAD {v['pad']}, EOT {v['eot']}, SOT {v['sot']}"
    )
    lines.append(f"times     log(1 + seconds a step): mean {s['mu']:.3f}, standard deviation {s['sigma']:.3f}")
    return "\n".join(lines)


def _floors(manifest: dict[str, Any]) -> str:
    names = {"single_successor": "steps without a choice", **RULES}
    lines = ["floors: next-road accuracy on validation without a model"]
    return "\n".join(lines + [f"  {names[key]:<46} {100 * value:5.1f} %" for key, value in manifest["floors"].items()])


def _findings(manifest: dict[str, Any]) -> str:
    """What is odd in the raw files, last, where it is read."""
    return "\n".join(f"warning: {sentence}" for sentence in manifest["findings"])


def _collisions(manifest: dict[str, Any]) -> str:
    lines = [
        "cells: what a teacher of cells can know about the next road (validation steps)",
        "  cell size  colliding  ceiling  next road in same cell  occupied cells",
    ]
    lines += [
        f"  {degrees(line['cell_size']):<9} {100 * line['colliding']:8.1f} % {100 * line['ceiling']:6.1f} %"
        f" {100 * line['same_cell']:21.1f} % {line['occupied']:15d}{'  <- chosen' if line['chosen'] else ''}"
        for line in manifest["collisions"]
    ]
    size, reason = manifest["recommended_cell_size"], manifest["cell_size_reason"]
    lines.append(f"  recommended: grid.cell_size={degrees(size)}, {reason}")
    (chosen,) = (line for line in manifest["collisions"] if line["chosen"])
    finest = min(manifest["collisions"], key=lambda line: line["cell_size"])
    if chosen["cell_size"] != size:
        advice = "right for an imported teacher's grid, otherwise take what is recommended"
        if is_enough(chosen["ceiling"], finest["ceiling"]):
            advice = "fine enough, too"
        lines.append(f"  chosen: {degrees(chosen['cell_size'])}; {advice}")
    return "\n".join(lines)
