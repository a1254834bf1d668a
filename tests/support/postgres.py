"""A PostgreSQL server of a test's own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found is None:
        versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
        found = str(versions[-1]) if versions else None
    return found


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """The URL of a new, empty server that listens on a socket in a directory of its own.

    Skips the test where there is no PostgreSQL. The server refuses to run as root, who becomes `postgres`.
    """
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("needs PostgreSQL (Debian: postgresql)")
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    place = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path may not be long
    if as_postgres:
        shutil.chown(place, "postgres")
    data = place / "data"
    options = f"-k {place} -c listen_addresses= -c fsync=off"

    def run(*command: str) -> None:
        subprocess.run([*as_postgres, *command], check=True, stdout=subprocess.DEVNULL, cwd=place, timeout=120)

    try:
        run(initdb, "-D", str(data), "-U", "tester", "--auth=trust", "-E", "UTF8")
        run(pg_ctl, "-D", str(data), "-w", "-l", str(place / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={place}"
        finally:
            run(pg_ctl, "-D", str(data), "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(place, ignore_errors=True)
