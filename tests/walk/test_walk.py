"""Clone, demo, own city, report: every printed line is the one that reviewers have read."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REPOSITORY

from walk.golden import GOLDEN, difference
from walk.shell import run_walk, steady
from walk.steps import PAGES, STEPS, Step


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(step.documented.split()[:2]))
def test_the_commands_are_those_of_the_documents(step: Step) -> None:
    assert any(step.documented in (REPOSITORY / page).read_text(encoding="utf-8") for page in PAGES)


PRINTED = """\
    12 s: training goes on
2026-01-31T23:59:59.123Z I shared.progress: pairs: 3 of 9, about 40 s left
2026-01-31T23:59:59.123Z I student_trainer.train.session: 24 trips at 127.0.0.1:34567, weights 203347adbc748cff, 1.5 s
2026-01-31T23:59:59.123Z I student_trainer.train.session: epoch 1/2: positions 85  nll 0.8241  collides 0
vanilla            77.75   \N{MINUS SIGN}0.8241 (95 % interval \N{MINUS SIGN}1.10 to +1.11 over 60 trips, p = 1).
{"out": "HERE/run", "best": {"epoch": 2, "nll": 1e-05}, "n": [3, 0.5]}
"""


def test_only_what_cannot_be_the_same_again_is_masked(tmp_path: Path) -> None:
    """Of what a model has learned numbers too; words, counts of data and places stay."""
    assert steady(PRINTED.replace("HERE", str(tmp_path)), True, tmp_path) == (
        "TIME I student_trainer.train.session: 24 trips at ADDRESS, weights HASH, # s\n"
        "TIME I student_trainer.train.session: epoch 1/2: positions 85  nll #  collides #\n"
        "vanilla  #  # (95 % interval # to # over 60 trips, p #).\n"
        '{"out": "HERE/run", "best": {"epoch": #, "nll": #}, "n": [#, #]}\n'
    )
    assert "nll 0.8241  collides 0" in steady(PRINTED, False, tmp_path)


def test_a_difference_is_shown_with_what_to_do_about_it() -> None:
    held = GOLDEN.read_text(encoding="utf-8")
    assert difference(held) == ""
    told = difference(held.replace("listening on", "ready at"))
    assert "-TIME I teacher_server.serve.run: listening on ADDRESS\n+TIME I teacher_server.serve.run: ready at" in told
    assert told.endswith("python -m tests.walk --accept")


@pytest.mark.long
@pytest.mark.integration
@pytest.mark.timeout(900)  # a minute where two cores are free
def test_a_first_hour_prints_what_reviewers_have_read(tmp_path: Path) -> None:
    if found := difference(run_walk(tmp_path)):
        pytest.fail(found, pytrace=False)
