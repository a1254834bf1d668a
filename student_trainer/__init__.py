"""The student: data preparation, the models, and their training against a remote teacher."""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import TYPE_CHECKING


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

_PUBLIC = {
    "NextRoad": "student_trainer.predict.next_road",
    "Store": "shared.store",
    "Student": "student_trainer.api",
    "Teacher": "student_trainer.distill.asking",
    "TeacherScore": "student_trainer.distill.asking",
}
"""Where what `docs/api.md` describes is defined; imported when it is first asked for, which takes seconds."""
__all__ = ["NextRoad", "Store", "Student", "Teacher", "TeacherScore"]

if TYPE_CHECKING:
    from shared.store import Store
    from student_trainer.api import Student
    from student_trainer.distill.asking import Teacher, TeacherScore
    from student_trainer.predict.next_road import NextRoad
else:

    def __getattr__(name: str) -> object:
        if name not in _PUBLIC:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from shared import extras

        with extras.needed("trainer"):
            return getattr(importlib.import_module(_PUBLIC[name]), name)
