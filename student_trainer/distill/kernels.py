"""Compiled look-up of rows in an answers file: by a hash, compared in full, so that a collision costs time only."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from shared.arrays import Int32, Int64, UInt16
from shared.compiled import compiled_in_place

_START = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xD6E8FEB86659FD93)
_SHIFT = np.uint64(32)


class FileRows(NamedTuple):
    """An answers file's arrays with offsets: R rows, L lists; see `shared.answers_file.Answers`.

    Attributes:
        tokens: int32 [H]; token_at: int64 [R + 1].
        choices: int32 [P]; choice_at: int64 [R + 1].
        list_tokens: int32 [T]; list_at: int64 [L + 1].
        log_probs: uint16 [K], bits of float16; answer_at: int64 [R + 1].
        heads: int64 [power of two], open addressing: row + 1, 0 for nothing.
    """

    tokens: Int32
    token_at: Int64
    choices: Int32
    choice_at: Int64
    list_tokens: Int32
    list_at: Int64
    log_probs: UInt16
    answer_at: Int64
    heads: Int64


class AskedRows(NamedTuple):
    """A query's rows, n of them.

    Attributes:
        tokens: int32 [H]; first_token, token_count: int64 [n], each row's part of them.
        first_position, position_count: int64 [n], the row's scored positions.
        candidates: int32 [K]; candidate_at: int64 [P + 1].
    """

    tokens: Int32
    first_token: Int64
    token_count: Int64
    first_position: Int64
    position_count: Int64
    candidates: Int32
    candidate_at: Int64


@compiled_in_place
def _mixed(state: np.uint64, value: int) -> np.uint64:
    state = (state ^ np.uint64(value)) * _FACTOR
    return state ^ (state >> _SHIFT)


@compiled_in_place
def _hash_in_file(rows: FileRows, row: int) -> np.uint64:
    state = _START
    for i in range(rows.token_at[row], rows.token_at[row + 1]):
        state = _mixed(state, rows.tokens[i])
    for i in range(rows.choice_at[row], rows.choice_at[row + 1]):
        choice = rows.choices[i]
        state = _mixed(state, rows.list_at[choice + 1] - rows.list_at[choice])
        for j in range(rows.list_at[choice], rows.list_at[choice + 1]):
            state = _mixed(state, rows.list_tokens[j])
    return state


@compiled_in_place
def _hash_asked(asked: AskedRows, row: int) -> np.uint64:
    """The same of a query's row."""
    state = _START
    for i in range(asked.first_token[row], asked.first_token[row] + asked.token_count[row]):
        state = _mixed(state, asked.tokens[i])
    for i in range(asked.first_position[row], asked.first_position[row] + asked.position_count[row]):
        state = _mixed(state, asked.candidate_at[i + 1] - asked.candidate_at[i])
        for j in range(asked.candidate_at[i], asked.candidate_at[i + 1]):
            state = _mixed(state, asked.candidates[j])
    return state


@compiled_in_place
def _is_same(rows: FileRows, found: int, asked: AskedRows, row: int) -> bool:
    tokens, choices = rows.token_at[found], rows.choice_at[found]
    if rows.token_at[found + 1] - tokens != asked.token_count[row]:
        return False
    if rows.choice_at[found + 1] - choices != asked.position_count[row]:
        return False
    for i in range(asked.token_count[row]):
        if rows.tokens[tokens + i] != asked.tokens[asked.first_token[row] + i]:
            return False
    for i in range(asked.position_count[row]):
        choice, position = rows.choices[choices + i], asked.first_position[row] + i
        first, last = asked.candidate_at[position], asked.candidate_at[position + 1]
        if rows.list_at[choice + 1] - rows.list_at[choice] != last - first:
            return False
        for j in range(last - first):
            if rows.list_tokens[rows.list_at[choice] + j] != asked.candidates[first + j]:
                return False
    return True


@compiled_in_place
def index(rows: FileRows) -> None:
    """Enters all rows in `heads`, which are empty and more than the rows."""
    mask = np.uint64(len(rows.heads) - 1)
    for row in range(len(rows.token_at) - 1):
        place = _hash_in_file(rows, row) & mask
        while rows.heads[place] != 0:
            place = (place + np.uint64(1)) & mask
        rows.heads[place] = row + 1


@compiled_in_place
def look_up(rows: FileRows, asked: AskedRows, log_probs: UInt16) -> int:
    """Copies the answers of all rows of a query.

    Args:
        rows: those of the file, entered by `index`.
        asked: those of the query.
        log_probs: uint16 [K], receives bits of float16.

    Returns:
        The first row that the file does not hold; -1 if it holds all.
    """
    mask = np.uint64(len(rows.heads) - 1)
    for row in range(len(asked.first_token)):
        place = _hash_asked(asked, row) & mask
        while True:
            found = rows.heads[place] - 1
            if found < 0:
                return row
            if _is_same(rows, found, asked, row):
                break
            place = (place + np.uint64(1)) & mask
        start, first = rows.answer_at[found], asked.candidate_at[asked.first_position[row]]
        for i in range(rows.answer_at[found + 1] - start):
            log_probs[first + i] = rows.log_probs[start + i]
    return -1
