"""The command line; exit code 0: what is printed is what the golden file holds, 1: it is not."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))  # as pytest has it

from walk.golden import GOLDEN, accept, difference  # noqa: E402
from walk.shell import run_walk  # noqa: E402


def main() -> int:
    """Walks, and compares or accepts."""
    parser = argparse.ArgumentParser("python -m tests.walk", description="A new user's first hour, in a minute.")
    parser.add_argument(
        "--accept", action="store_true", help=f"what is printed now is right: write it to {GOLDEN.name}"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        printed = run_walk(Path(folder))
    if arguments.accept:
        accept(printed)
        return 0
    found = difference(printed)
    print(found or "as the golden file")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
