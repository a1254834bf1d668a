"""Numbers in sentences for people."""

from __future__ import annotations

from collections.abc import Mapping


def form(count: int, one: str, many: str) -> str:
    """The word that goes with a count, as lies and lie."""
    return one if count == 1 else many


def counted(count: int, noun: str, plural: str = "s") -> str:
    """A count and its noun: 1 trip, 2 trips; `plural` is what the noun ends in for several."""
    return f"{count} {form(count, noun, noun + plural)}"


def reasons(dropped: Mapping[str, int]) -> str:
    """How many were dropped for which reason, as in 1 too_short, 2 off_network; empty if none was."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
