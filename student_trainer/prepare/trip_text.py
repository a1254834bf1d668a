"""Blocks of a trips file -> numbers, compiled: the plain way of writing a trip, which is nearly every one.

What is written in any other way is not refused here but left, with its whole block, to the general reader in `raw`,
which understands all that is CSV, or says what is wrong with it. So both give the same for what this one reads.
"""

from __future__ import annotations

import numpy as np

from shared.arrays import Int32, Int64, UInt8
from shared.compiled import compiled

COMMA, QUOTE, SPACE, CR, LF, ZERO, NINE = (ord(character) for character in '," \r\n09')
TIME_BYTES = 20
BAD_TIME = np.iinfo(np.int64).min
LONGEST_ID = 9
"""Digits of a road id that surely fit an int32."""


def read_block(
    text: bytes, columns: int, road_column: int, time_column: int, num_roads: int
) -> tuple[Int32, Int64, Int64] | None:
    """The trips of a block, or None if it holds anything but plain ones of known roads.

    Plain are roads as in `12,57,903` and times as in `2008-05-22T13:10:06Z`, as many, with blanks at will.

    Args:
        text: whole records, each with its line feed.
        columns: number of fields of a record.
        road_column, time_column: places of `rid_list` and `time_list` among them.
        num_roads: road ids are smaller.

    Returns:
        Roads int32 [L] and times int64 [L], trips back to back; roads per trip, int64 [n].
    """
    if not _is_text(text):
        return None
    capacity = text.count(b",") + text.count(b"\n") + 1
    roads, times = np.empty(capacity, np.int32), np.empty(capacity, np.int64)
    lengths = np.empty(text.count(b"\n"), np.int64)
    characters = np.frombuffer(text, np.uint8)
    rows, values = _read(characters, columns, road_column, time_column, num_roads, roads, times, lengths)
    if rows < 0:
        return None
    return roads[:values].copy(), times[:values].copy(), lengths[:rows].copy()


def _is_text(data: bytes) -> bool:
    """Whether it is UTF-8, also in the fields that nobody reads."""
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@compiled
def _read(
    text: UInt8,
    columns: int,
    road_column: int,
    time_column: int,
    num_roads: int,
    roads: Int32,
    times: Int64,
    lengths: Int64,
) -> tuple[int, int]:
    """Rows and values read; (-1, -1) if it is not plain."""
    at, rows, values = 0, 0, 0
    while at < len(text):
        num_times = num_ids = 0
        for column in range(columns):
            if at >= len(text):
                return -1, -1
            quoted = text[at] == QUOTE
            at += quoted
            if column == road_column:
                at, num_ids = _read_roads(text, at, quoted, num_roads, roads[values:])
            elif column == time_column:
                at, num_times = _read_times(text, at, quoted, times[values:])
            else:
                at = _skip(text, at, quoted)
            if at < 0 or (quoted and text[at] != QUOTE):
                return -1, -1
            at += quoted
            if column < columns - 1:
                if at >= len(text) or text[at] != COMMA:
                    return -1, -1
                at += 1
        if at < len(text) and text[at] == CR:
            at += 1
        if at >= len(text) or text[at] != LF or num_ids != num_times:
            return -1, -1
        at += 1
        lengths[rows] = num_ids
        rows += 1
        values += num_ids
    return rows, values


@compiled
def _read_roads(text: UInt8, at: int, quoted: bool, num_roads: int, roads: Int32) -> tuple[int, int]:
    """Reads a list of road ids: where it ends, and how many; or at -1."""
    if _ends(text, at, quoted):
        return at, 0
    count = 0
    while True:
        at = _skip_blanks(text, at)
        road, digits = 0, 0
        while at < len(text) and ZERO <= text[at] <= NINE and digits <= LONGEST_ID:
            road = road * 10 + text[at] - ZERO
            digits += 1
            at += 1
        if digits == 0 or digits > LONGEST_ID or road >= num_roads:
            return -1, 0
        roads[count] = road
        count += 1
        at = _skip_blanks(text, at)
        if _ends(text, at, quoted):
            return at, count
        if at >= len(text) or text[at] != COMMA:
            return -1, 0
        at += 1


@compiled
def _read_times(text: UInt8, at: int, quoted: bool, times: Int64) -> tuple[int, int]:
    """Reads a list of times: where it ends, and how many; or at -1."""
    if _ends(text, at, quoted):
        return at, 0
    count = 0
    while True:
        at = _skip_blanks(text, at)
        if at + TIME_BYTES > len(text) or count >= len(times):
            return -1, 0
        time = _time(text, at)
        if time == BAD_TIME:
            return -1, 0
        times[count] = time
        count += 1
        at = _skip_blanks(text, at + TIME_BYTES)
        if _ends(text, at, quoted):
            return at, count
        if at >= len(text) or text[at] != COMMA:
            return -1, 0
        at += 1


@compiled
def _time(text: UInt8, at: int) -> int:
    """Seconds since 1970 of `YYYY-MM-DDTHH:MM:SSZ`, or `BAD_TIME`."""
    year = 100 * _two_digits(text, at) + _two_digits(text, at + 2)
    month, day = _two_digits(text, at + 5), _two_digits(text, at + 8)
    hour, minute, second = (
        _two_digits(text, at + 11),
        _two_digits(text, at + 14),
        _two_digits(text, at + 17),
    )
    if (
        text[at + 4] != ord("-")
        or text[at + 7] != ord("-")
        or text[at + 10] != ord("T")
        or text[at + 13] != ord(":")
        or text[at + 16] != ord(":")
        or text[at + 19] != ord("Z")
        or year < 1
        or not 1 <= month <= 12
        or not 1 <= day <= _days_of(year, month)
        or not 0 <= hour <= 23
        or not 0 <= minute <= 59
        or not 0 <= second <= 59
    ):
        return BAD_TIME
    # days since 1970 with years that begin in March, so that the leap day is the last
    early = month <= 2
    march_year = year - early
    day_of_year = (153 * (month - 3 + 12 * early) + 2) // 5 + day - 1
    days = 365 * march_year + march_year // 4 - march_year // 100 + march_year // 400 + day_of_year - 719_468
    return ((days * 24 + hour) * 60 + minute) * 60 + second


@compiled
def _days_of(year: int, month: int) -> int:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month in (4, 6, 9, 11) else 31


@compiled
def _two_digits(text: UInt8, at: int) -> int:
    """The number, or something far below 0."""
    tens, ones = int(text[at]) - ZERO, int(text[at + 1]) - ZERO
    return 10 * tens + ones if 0 <= tens <= 9 and 0 <= ones <= 9 else -100_000


@compiled
def _ends(text: UInt8, at: int, quoted: bool) -> bool:
    """Whether a field ends here; between quotes a comma does not end it."""
    if at >= len(text):
        return False
    character = text[at]
    return bool(character == QUOTE if quoted else character in (COMMA, CR, LF))


@compiled
def _skip_blanks(text: UInt8, at: int) -> int:
    while at < len(text) and text[at] == SPACE:
        at += 1
    return at


@compiled
def _skip(text: UInt8, at: int, quoted: bool) -> int:
    """The end of a field that nobody reads; -1 if there is none, or a quote within it that is not doubled."""
    while at < len(text):
        character = text[at]
        if quoted:
            if character == QUOTE:
                if at + 1 >= len(text) or text[at + 1] != QUOTE:
                    return at
                at += 1
        elif character in (COMMA, CR, LF):
            return at
        elif character == QUOTE:
            return -1
        at += 1
    return -1
