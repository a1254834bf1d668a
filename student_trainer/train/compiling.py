"""Where torch.compile keeps its machine code: it loads what lies there, unchecked.

By default that is a directory in /tmp whose name anybody can guess, and a file there that is damaged ends every later
run. A run therefore has a directory of its own, removed at its end, unless it is told of a lasting one.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from pathlib import Path

from shared import caches

log = logging.getLogger(__name__)

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def use_own_directory() -> None:
    """Names the directory to torch, for this process: the one that the variable names if it is this user's alone."""
    if given := os.environ.get(VARIABLE):
        try:
            caches.make_private(Path(given))
            return
        except OSError as error:
            log.warning("%s=%s is not used (%s); compiling anew", VARIABLE, given, error.strerror)
    folder = tempfile.mkdtemp(prefix="lmtad-hoser-compile-")  # of mode 700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = folder
