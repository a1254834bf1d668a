"""Other processes of this installation, which import what this one imports, wherever they are started."""

from __future__ import annotations

import os
import sys


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours; to be started with `environment()`.

    `-P` keeps the working directory out of the module path: a folder there may be called `shared`, too.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def environment(**more: str) -> dict[str, str]:
    """This process's environment, with its module path and what is given."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | more
