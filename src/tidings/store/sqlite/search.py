"""Finding events of the log by key, event id, correlation id or time, without an index on the log.

An index on the log would be paid by every publish, by random writes that grow with the log. Instead workers, when there is time,
condense each full block of 8,192 positions into one row of ``tidings_blocks``: the span of its times, and a sorted array of 32-bit
entries, one for each different word (key, event id, correlation id) of an event. The upper 19 bits are the word's CRC-32, the lower
13 say which position of the block. Looking a word up is one bisection in each block and gives positions, and the statement that
fetches those rows compares the real columns: a collision costs one needless fetch, never a wrong answer. That is 4 bytes a word and
8 to 12 bytes an event, written once, in order.

A block is only ever condensed when all of its positions have been given out; they are given out in the order of commits and rows
don't change, so a condensed block stays true. Whatever has no block (the tail, a store that nobody has condensed) is scanned plainly.
"""

from __future__ import annotations

import json
import sqlite3
import sys
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from zlib import crc32

OFFSET_BITS = 13
BLOCK = 1 << OFFSET_BITS
"""Positions in a block."""
_OFFSET = BLOCK - 1
_HASH = 0xFFFF_FFFF ^ _OFFSET

GATHER = 256
"""Positions looked up by one statement."""

CONDENSE = "SELECT position, key, event_id, correlation_id, time FROM tidings_log WHERE position BETWEEN ? AND ?"
# The newest block is the last one condensed: blocks are made in order.
LAST_BLOCK = "SELECT max(block) FROM tidings_blocks"
BLOCKS = "SELECT block, oldest, newest{entries} FROM tidings_blocks WHERE block >= ? ORDER BY block {order}"


@dataclass(frozen=True, slots=True)
class Block:
    """Positions ``number * BLOCK`` up to the next block's; ``oldest`` and ``newest``: the span of times; ``entries``: little-endian."""

    number: int
    oldest: int
    newest: int
    entries: bytes


def next_block(conn: sqlite3.Connection, first: int, head: int) -> Block | None:
    """The next block to be stored, condensed from the log; None if no further one is full.

    Args:
        first: lowest position in the log. head: last position given out, as seen in the same snapshot.
    """
    last = conn.execute(LAST_BLOCK).fetchone()[0]
    number = max(first >> OFFSET_BITS, 0 if last is None else int(last) + 1)
    if (number + 1) * BLOCK - 1 > head:
        return None
    words: set[int] = set()
    oldest, newest = (1 << 63) - 1, -(1 << 63)
    for position, key, event_id, correlation_id, time in conn.execute(CONDENSE, (number * BLOCK, (number + 1) * BLOCK - 1)):
        offset = position & _OFFSET
        words.add(_hash(event_id) | offset)
        if correlation_id != event_id:
            words.add(_hash(correlation_id) | offset)
        if key is not None:
            words.add(_hash(key) | offset)
        oldest, newest = min(oldest, time), max(newest, time)
    entries = array("I", sorted(words))
    if sys.byteorder == "big":
        entries.byteswap()
    return Block(number, oldest, newest, entries.tobytes())


def spans(
    conn: sqlite3.Connection, words: Sequence[str] = (), *, after: int = 0, since: int | None = None, until: int | None = None,
    newest: bool = False,
) -> Iterator[range | list[int]]:  # fmt: skip
    """Where rows can be that have one of the words (if any are given) and a time in ``[since, until)``: never fewer places than there are.

    Yields:
        Ranges of positions to be scanned and lists of single positions, behind ``after``, ascending (``newest``: descending).
    """
    first, last = conn.execute("SELECT (SELECT min(position) FROM tidings_log), (SELECT max(position) FROM tidings_log)").fetchone()
    if first is None or last <= after:
        return
    first = max(first, after + 1)
    lowest, highest = first >> OFFSET_BITS, last >> OFFSET_BITS
    hashes = sorted({_hash(word) for word in words})
    blocks: Iterator[tuple[int, int, int, bytes]] = iter(())
    if conn.execute("SELECT 1 FROM sqlite_master WHERE name = 'tidings_blocks'").fetchone() is not None:
        columns = ", entries" if words else ", x''"
        blocks = conn.execute(BLOCKS.format(entries=columns, order="DESC" if newest else "ASC"), (lowest,))

    # Neighbouring blocks that must be scanned are scanned by one statement: [pending, pending_end).
    pending = pending_end = highest + 1 if newest else lowest
    singles: list[int] = []
    for number, block_oldest, block_newest, entries in blocks:
        outside = (since is not None and block_newest < since) or (until is not None and block_oldest >= until)
        if not outside and not words:
            continue  # scanned with what comes before it
        if newest:
            pending = number + 1
        else:
            pending_end = number
        if pending < pending_end:
            if singles:
                yield singles
                singles = []
            yield _positions(pending, pending_end, first, last)
        pending = pending_end = number if newest else number + 1
        if not outside:
            singles += _offsets(entries, hashes, number, first, newest)
            if len(singles) >= GATHER:
                yield singles
                singles = []
    if singles:
        yield singles
    if newest:
        pending = lowest
    else:
        pending_end = highest + 1
    if pending < pending_end:
        yield _positions(pending, pending_end, first, last)


def condition(span: range | list[int]) -> tuple[str, tuple[object, ...]]:
    """A span as SQL over ``position`` with its arguments."""
    if isinstance(span, range):
        return "position BETWEEN ? AND ?", (span.start, span.stop - 1)
    return "position IN (SELECT value FROM json_each(?))", (json.dumps(span),)


def _hash(word: str) -> int:
    return crc32(word.encode()) & _HASH


def _positions(block: int, end: int, first: int, last: int) -> range:
    return range(max(block * BLOCK, first), min(end * BLOCK, last + 1))


def _offsets(entries: bytes, hashes: Sequence[int], block: int, first: int, newest: bool) -> list[int]:
    if sys.byteorder == "big":
        swapped = array("I", entries)
        swapped.byteswap()
        entries = swapped.tobytes()
    view = memoryview(entries).cast("I")
    start, found = block * BLOCK, set()
    at, size = 0, len(view)
    for wanted in hashes:
        at = bisect_left(view, wanted, at)
        while at < size and view[at] & _HASH == wanted:
            found.add(start + (view[at] & _OFFSET))
            at += 1
    return sorted((position for position in found if position >= first), reverse=newest)
