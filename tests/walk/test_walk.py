"""Clone, demo, own city, report: every printed line is the one that reviewers have read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from walk.golden import difference
from walk.shell import run_walk
from walk.steps import PAGES, STEPS


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step.documented.split()[:2]))
def test_the_commands_are_those_of_the_documents(step) -> None:  # type: ignore[no-untyped-def]
    assert any(step.documented in (REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.integration
def test_a_first_hour_prints_what_reviewers_have_read(tmp_path: Path) -> None:
    if found := difference(run_walk(tmp_path)):
        pytest.fail(found, pytrace=False)
