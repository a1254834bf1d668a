"""The golden file: what reviewers read, and what a walk is compared with."""

from __future__ import annotations

import difflib
from pathlib import Path

GOLDEN = Path(__file__).with_name("first_hour.txt")
ADVICE = "read the difference; if every line of it is meant: python -m tests.walk --accept"


def difference(printed: str) -> str:
    """A unified diff from the golden file to what was printed, with how to accept it; empty if there is none."""
    held = GOLDEN.read_text(encoding="utf-8") if GOLDEN.exists() else ""
    lines = difflib.unified_diff(held.splitlines(), printed.splitlines(), GOLDEN.name, "printed now", lineterm="")
    found = "\n".join(lines)
    return f"{found}\n\n{ADVICE}" if found else ""


def accept(printed: str) -> None:
    """Makes what was printed the golden file."""
    GOLDEN.write_text(printed, encoding="utf-8")
