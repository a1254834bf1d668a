"""Every fuzz target for a moment: its seeds are good inputs, and edits of them do no harm."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz import files, text, wire
from fuzz.target import Target, attempt

TESTS = str(REPOSITORY / "tests")
TARGETS = (*wire.TARGETS, *files.TARGETS, *text.TARGETS)
each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
GOOD = {target.name for target in TARGETS} - {"teacher-document", "cache-rows", "upstream-index", "yaml", "override"}
"""Targets all of whose seeds are taken."""

SHARED_STATE = (
    "import logging; before = logging.getLogger().level; import {}; assert logging.getLogger().level == before"
)

edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat", "cut"]),
        st.floats(0, 1, exclude_max=True),
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"-1", b"null", b"1e999", b"[", b"{}", b'"']),
        ),
    ),
    min_size=1,
    max_size=4,
)


def edited(seed: bytes, changes: list[tuple[str, float, bytes]]) -> bytes:
    for kind, share, piece in changes:
        place = int(share * len(seed))
        before, after = seed[:place], seed[place:]
        seed = {
            "replace": before + piece + after[len(piece) :],
            "insert": before + piece + after,
            "delete": before + after[len(piece) :],
            "repeat": before + after[:16] * 3 + after,
            "cut": before,
        }[kind]
    return seed


def test_importing_the_targets_changes_nothing_for_other_tests() -> None:
    code = SHARED_STATE.format(__name__)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, env={**os.environ, "PYTHONPATH": TESTS})


@each_target
def test_seeds(target: Target) -> None:
    taken = [attempt(target, seed) for seed in target.seeds()]
    assert all(taken) or target.name not in GOOD
    assert any(taken) or target.name == "teacher-document"  # its weights are not those of the revision


@each_target
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_edits_of_seeds(target: Target, data: st.DataObject) -> None:
    attempt(target, edited(data.draw(st.sampled_from(target.seeds())), data.draw(edits)))


@each_target
@settings(max_examples=15, deadline=None)
@given(data=st.binary(max_size=100))
def test_any_bytes(target: Target, data: bytes) -> None:
    attempt(target, data)
