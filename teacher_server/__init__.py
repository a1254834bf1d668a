"""The teacher: LM-TAD, and the daemon that serves its scores.

request -> decode + check -> batcher: look up, admit, cut -> engine (model thread) -> encode -> response

docs/architecture.md has the rooms, and which may import which.

Words: a context is SOT and the tokens that a place is scored after; a place is a position in a context; a row is a
context with the candidates of its scored places, in the answer table and in a batch; a slot is where the table keeps
a row; a position is what a request has one answer for.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def _refuse_another_shared() -> None:
    """`shared` is a name that others use, too: a folder in the working directory, a package of another distribution.

    Stands in both packages, word for word, because it runs before anything of `shared` can be trusted.
    """
    program = __name__.replace("_", "-")
    expected = os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "shared", "__init__.py")
    spec = importlib.util.find_spec("shared")  # executes nothing
    found = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []  # no origin: a folder of no package
    origin = next(filter(None, found), "nowhere")
    if os.path.realpath(origin) != expected:
        problem = f"`shared` would be imported from {origin} instead of {expected}"
        remedy = (
            f"run the command {program} or python -P -m {__name__} (with torchrun: torchrun --no-python {program}), "
            "or start from another directory"
        )
    elif not hasattr(importlib.import_module("shared"), "DISTRIBUTION"):
        problem = f"another distribution has installed its own {origin} over this project's"
        remedy = "install this project into a virtual environment without it"
    else:
        return
    message = f"{program}: {problem}; {remedy}"
    if os.path.basename(sys.argv[0]) in {"-m", program}:  # a command: `-m` stands there while it is looked for
        sys.stderr.write(f"{message}\n")
        sys.exit(2)
    raise ImportError(message)


_refuse_another_shared()
