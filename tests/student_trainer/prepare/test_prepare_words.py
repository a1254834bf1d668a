"""Numbers in sentences."""

from __future__ import annotations

from student_trainer.prepare import words


def test_one_is_singular_and_none_is_not() -> None:
    assert [words.counted(count, "trip") for count in (0, 1, 2)] == ["0 trips", "1 trip", "2 trips"]
    assert [words.counted(count, "class", "es") for count in (1, 3)] == ["1 class", "3 classes"]
    assert [words.form(count, "lies", "lie") for count in (0, 1, 2)] == ["lie", "lies", "lie"]


def test_reasons_for_which_nothing_was_dropped_are_left_out() -> None:
    assert words.reasons({"too_short": 1, "off_network": 0, "time_backwards": 2}) == "1 too_short, 2 time_backwards"
    assert words.reasons({"too_short": 0}) == words.reasons({}) == ""
