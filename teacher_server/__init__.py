"""The teacher: LM-TAD, and the daemon that serves its scores.

request -> decode + validate -> admit -> batcher -> engine (model thread) -> encode -> response
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
