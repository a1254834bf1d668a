"""The answers that a daemon remembers, in a file between its runs: safetensors, nothing in it can be executed.

They are good for one teacher on one kind of device, so the file names the scorer's `numerics`.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from shared import files
from teacher_server.answers.compiled import Kept

log = logging.getLogger(__name__)

FORMAT = "teacher-answers/1"
_DTYPES = {"key_words": np.int32, "value_halves": np.int32, "words": np.int32, "halves": np.uint16}


def write(path: Path, kept: Kept, numerics: str) -> None:
    """Writes the file atomically.

    Raises:
        ReportableError: the disk is full, or the directory cannot be written.
    """
    document = {"format": FORMAT, "numerics": numerics, "digest": _digest(kept)}
    with files.atomic_path(path) as temporary:
        safetensors.numpy.save_file(kept._asdict(), temporary, metadata={"answers": json.dumps(document)})


def read(path: Path, numerics: str) -> Kept | None:
    """The answers for a scorer; None if there are none that it can use, and why is logged: it starts cold then."""
    try:
        path.stat()  # a directory that cannot be entered has a reason, too
        with safetensors.safe_open(path, framework="np") as file:
            document = json.loads((file.metadata() or {}).get("answers", "null"))
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                log.warning("%s holds no remembered answers (%s); starting without them", path, FORMAT)
                return None
            if document.get("numerics") != numerics:
                log.warning("the answers in %s are of other weights or another device; starting without them", path)
                return None
            arrays = {name: file.get_tensor(name) for name in _DTYPES}
    except FileNotFoundError:
        log.info("no remembered answers at %s yet", path)
        return None
    except (safetensors.SafetensorError, json.JSONDecodeError, OSError, TypeError) as error:
        log.warning("the remembered answers in %s cannot be read (%s); starting without them", path, error)
        return None
    kept = Kept(**arrays)
    has_types = all(arrays[name].dtype == dtype and arrays[name].ndim == 1 for name, dtype in _DTYPES.items())
    if not has_types or document.get("digest") != _digest(kept):
        log.warning("the remembered answers in %s are damaged; starting without them", path)
        return None
    return kept


def _digest(kept: Kept) -> str:
    return files.digest(*(part for name, array in kept._asdict().items() for part in (name, array.tobytes())))
