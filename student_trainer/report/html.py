"""One HTML file without anything from elsewhere: style, script and data are in it."""

from __future__ import annotations

import html
import importlib.resources
import json
from typing import Any

from shared import files
from student_trainer.report import figures, map_data
from student_trainer.report import study as studies
from student_trainer.report.study import Study

ASSETS = "student_trainer.report.assets"


def render(
    content: dict[str, Any], network: dict[str, Any], pairs: list[dict[str, Any]], study: Study | None = None
) -> str:
    """The page.

    Args:
        content: `Content.as_dict`.
        network, pairs: of `map_data`.
        study: findings of `tune`, if there are any.
    """
    shown = [metric.on_map() for metric in map_data.metrics()]
    data = {
        **content,
        "colours": figures.colours(content),
        "map": {"network": network, "pairs": pairs, "metrics": shown},
    }
    page = _asset("report.html")
    found = "" if study is None else f'<section id="study"><h2>Study</h2>{studies.section(study)}</section>'
    link = "" if study is None else '<a href="#study">Study</a>'
    for mark, text in (
        ("<!--TITLE-->", html.escape(content["title"])),
        ("<!--STUDY-LINK-->", link),
        ("<!--STUDY-->", found),
        ("/*STYLE*/", _asset("report.css")),
        ("/*SCRIPT*/", "\n".join(_asset(name) for name in ("charts.js", "map.js", "report.js"))),
        ("/*DATA*/", embedded(data)),
    ):
        before, there, after = page.partition(mark)
        assert there, f"the template lacks {mark}"
        page = before + text + after
    return page


def embedded(value: Any) -> str:
    """JSON that may stand in a script element: it holds no < that could end it, and no number that JSON lacks."""
    text = json.dumps(files.finite(value), separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _asset(name: str) -> str:
    return importlib.resources.files(ASSETS).joinpath(name).read_text(encoding="utf-8")
