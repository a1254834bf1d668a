"""Road classes as they are written in files of many origins -> one class a road.

Of a list the first class counts, or the second if the first is `unclassified`. Lists are written by Python
(`['trunk', 'primary']`), by JSON, and by numpy, without commas (`['trunk' 'primary']`). Numbers are compared by value:
`3` and `3.0` are one class.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from student_trainer.prepare.words import counted, form

QUOTED = r"""(?:'[^'\\]*'|"[^"\\]*")"""
LIST = re.compile(rf"[\[(]\s*({QUOTED}(?:(?:\s*,\s*|\s+){QUOTED})*)\s*,?\s*[\])]")
LIST_STARTS = ("[", "(", "{")
WHOLE = re.compile(r"[+-]?\d+(?:\.0*)?")


def class_of(text: str) -> str:
    """The class of a road; raises `ValueError` if it is empty or a list that cannot be read."""
    stripped = text.strip()
    if not stripped:
        raise ValueError("empty")
    if not stripped.startswith(LIST_STARTS):
        return _by_value(stripped)
    found = LIST.fullmatch(stripped)
    if found is None:
        raise ValueError(f"{text!r} looks like a list of road classes, but cannot be read as one")
    classes = [quoted[1:-1].strip() for quoted in re.findall(QUOTED, found[1])]
    chosen = classes[classes[0] == "unclassified" and len(classes) > 1]
    if not chosen:
        raise ValueError("empty")
    return _by_value(chosen)


def findings(written: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Sentences about classes that were written in several ways, or may have been.

    Args:
        written: text of each road.
        classes: its class.
    """
    found = []
    spelled: dict[str, Counter[str]] = {}
    for text, name in zip(written, classes, strict=True):
        if WHOLE.fullmatch(text.strip()):
            spelled.setdefault(name, Counter())[text.strip()] += 1
    several = {name: texts for name, texts in spelled.items() if len(texts) > 1}
    if several:
        roads = sum(sum(texts.values()) - max(texts.values()) for texts in several.values())
        example = ", ".join(map(repr, next(iter(several.values()))))
        found.append(
            f"roadmap.geo, column highway: {counted(roads, 'road')} {form(roads, 'writes', 'write')} the number of "
            f"{form(roads, 'its', 'their')} class otherwise than the others ({example}); numbers are compared by value"
        )
    alike: dict[str, list[str]] = {}
    for name in sorted(set(classes)):
        alike.setdefault(name.casefold(), []).append(name)
    if pairs := [names for names in alike.values() if len(names) > 1]:
        found.append(
            f"roadmap.geo, column highway: classes that differ in capitals alone stay apart: {', '.join(pairs[0])}; "
            "write them alike if they are the same"
        )
    return found


def _by_value(text: str) -> str:
    return str(int(text.partition(".")[0])) if WHOLE.fullmatch(text) else text
