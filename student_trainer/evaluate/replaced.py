"""Whether an evaluation replaces one of other trips or other weights, which may not have been meant."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from student_trainer.runs.layout import EVALUATION

log = logging.getLogger(__name__)


def held(out: Path) -> dict[str, Any] | None:
    """The evaluation that is in a directory; None if none is there, or it cannot be read."""
    try:
        document = json.loads((out / EVALUATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and "trips_at" in document else None


def tell(out: Path, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Warns where an evaluation was of other trips or other weights than the one that has replaced it."""
    (trips, weights), (now, others) = _subject(before), _subject(after)
    if trips != now or weights not in (None, others):
        log.warning("%s held the evaluation of %s (%s), which is replaced", out, before.get("name"), before["trips_at"])


def _subject(document: Mapping[str, Any]) -> tuple[object, object]:
    """What an evaluation is of: the digests of its trips, or where they are, and the digest of its weights, if any."""
    made, weights = document.get("generated", document.get("sampled")), document.get("weights")
    digests = made.get("files") if isinstance(made, dict) else None
    return digests or document["trips_at"], weights.get("sha256") if isinstance(weights, dict) else None
