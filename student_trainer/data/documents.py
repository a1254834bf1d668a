"""JSON files of ours, which name their format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shared.errors import FileFormatError


def read(path: Path, expected: str, job: str) -> dict[str, Any]:
    """A JSON object with a format of ours.

    Raises:
        FileFormatError: it is missing, damaged or of another format; names the job that writes such files.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileFormatError(f"{path} does not exist; make it with `student-trainer {job}`") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from None
    if not isinstance(document, dict) or document.get("format") != expected:
        raise FileFormatError(f"{path} is not of the format {expected}; make it again with `student-trainer {job}`")
    return document
