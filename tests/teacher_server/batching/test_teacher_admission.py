"""What may wait for the model: limits are kept, room comes back, what was granted is admitted."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from teacher_server.batching.admission import Admission
from teacher_server.batching.config import BatchingConfig

SETTINGS = BatchingConfig(
    max_queued_positions=10, max_request_positions=10, max_queued_candidates=40, max_request_candidates=40
)


def test_a_refusal_says_what_waits_and_what_the_limit_is() -> None:
    admission = Admission(SETTINGS)
    admission.add(8, 20)
    assert admission.refusal(2, 20, is_granted=False) == ""
    assert admission.refusal(3, 1, is_granted=False) == "8 positions wait, 3 more would exceed 10"
    assert admission.refusal(1, 21, is_granted=False) == "20 candidates wait, 21 more would exceed 40"


def test_granted_positions_are_admitted_but_candidates_are_limited_for_all() -> None:
    admission = Admission(SETTINGS)
    admission.add(10, 20)
    assert admission.refusal(5, 20, is_granted=True) == ""
    assert admission.refusal(5, 21, is_granted=True) == "20 candidates wait, 21 more would exceed 40"


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 20), st.booleans()), max_size=30))
def test_admitted_requests_never_exceed_the_limits_and_room_comes_back(requests: list[tuple[int, int, bool]]) -> None:
    admission = Admission(SETTINGS)
    admitted: list[tuple[int, int]] = []
    for positions, candidates, leaves in requests:
        refusal = admission.refusal(positions, candidates, is_granted=False)
        fits = sum(p for p, _ in admitted) + positions <= 10 and sum(c for _, c in admitted) + candidates <= 40
        assert (refusal == "") is fits
        if fits:
            admission.add(positions, candidates)
            admitted.append((positions, candidates))
        if leaves and admitted:
            admission.remove(*admitted.pop(0))
        assert (admission.positions, admission.candidates) == tuple(map(sum, zip((0, 0), *admitted, strict=True)))
