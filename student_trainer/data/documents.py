"""JSON files of ours, which name their format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.errors import FileFormatError

NO_OTHERS: Mapping[str, str] = {}


def read(path: Path, expected: str, job: str, others: Mapping[str, str] = NO_OTHERS) -> dict[str, Any]:
    """A JSON object with a format of ours.

    Args:
        others: formats that are none of the job's older ones, and what to say where a file is of one of them.

    Raises:
        FileFormatError: it is missing, damaged or of another format; names the job that writes such files.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist; make it with `student-trainer {job}`") from None
    except NotADirectoryError:
        wanted = f"give the directory that `student-trainer {job}` wrote"
        raise FileFormatError(f"{path.parent} is a file; {wanted}") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, str) and found in others:
        raise FileFormatError(f"{path} {others[found]}")
    if not isinstance(document, dict) or found != expected:
        raise FileFormatError(f"{path} is not of the format {expected}; make it again with `student-trainer {job}`")
    return document
