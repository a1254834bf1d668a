"""The random numbers: known answers, independence of the array, and draws from weights."""

from __future__ import annotations

import numpy as np
import pytest

from student_trainer.sample.philox import Purpose, philox, pick, uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0,) * 4, (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """Those that the authors' library checks itself with."""
    a, b, c, d = (np.array([word, 1], np.uint64) for word in counter)
    assert tuple(int(word[0]) for word in philox((a, b, c, d), key)) == words


def test_a_number_is_its_walker_s_own() -> None:
    walker, step = np.array([0, 5, 2**40, 5]), np.array([1, 0, 7, 1])
    together = uniform(2**63 + 9, Purpose.NEXT_ROAD, walker, step)
    alone = [uniform(2**63 + 9, Purpose.NEXT_ROAD, walker[[i]], step[[i]])[0] for i in range(4)]
    assert together.tolist() == alone
    others = [uniform(9, Purpose.NEXT_ROAD, walker, step), uniform(2**63 + 9, Purpose.SECONDS, walker, step)]
    assert len({*alone, *(number for other in others for number in other.tolist())}) == 12


def test_numbers_are_uniform() -> None:
    numbers = uniform(0, Purpose.ORIGIN, np.arange(20_000), np.zeros(20_000, np.int64))
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = np.bincount((numbers * 20).astype(int), minlength=20)
    assert ((counts - 1000) ** 2 / 1000).sum() < 40
    assert len(np.unique(numbers)) == 20_000


def test_outcomes_of_weight_0_are_never_picked() -> None:
    cumulative = np.cumsum([[0.0, 0.3, 0.0, 0.7, 0.0], [0.0, 0.0, 0.1, 0.2, 0.0]], axis=1)
    largest = np.nextafter(1.0, 0)
    for number, expected in [(0.0, [1, 2]), (0.29, [1, 2]), (0.35, [3, 3]), (largest, [3, 3])]:
        assert pick(cumulative, np.full(2, number)).tolist() == expected
        assert pick(cumulative[0], np.array([number])).tolist() == expected[:1]
