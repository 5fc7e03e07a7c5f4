"""Finding without an index never misses a row, whatever was condensed, trimmed or is still in the tail."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidings import SQLiteStore
from tidings.envelope import Envelope
from tidings.store.sqlite import schema, search
from tidings.store.sqlite.unit import SQLiteUnit

KEYS = ["1", "2", "10", "é", "", "x" * 300]


def envelope(key: str | None, event_id: str, correlation_id: str, time: int, type: str = "shop.A") -> Envelope:
    name = None if key is None else "order_id"
    return Envelope(0, 0, "shop", type, 1, name, key, event_id, time, "shop", b"{}", correlation_id, None, None, None)


def fits(row: Envelope, question: dict[str, Any]) -> bool:
    key = question.get("key")
    return (
        row.position > question.get("after", 0)
        and (key is None or (row.key == key[1] and key[0] in (None, row.key_name)))
        and (not question.get("correlation_ids") or row.correlation_id in question["correlation_ids"])
        and (not question.get("event_ids") or row.event_id in question["event_ids"])
        and (not question.get("types") or row.type in question["types"])
        and (question.get("since") is None or row.time >= question["since"])
        and (question.get("until") is None or row.time < question["until"])
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    store = SQLiteStore(f"sqlite:///{tmp_path}/log.db", synchronous="NORMAL")
    store.open()
    yield store
    store.close()


def condense(store: SQLiteStore) -> None:
    while (block := store.query(lambda unit: unit.next_block())) is not None:
        store.write(partial(SQLiteUnit.add_block, block=block)).result()


rows = st.lists(
    st.tuples(st.sampled_from([*KEYS, None]), st.integers(0, 12), st.integers(0, 40), st.sampled_from(["shop.A", "shop.B"])), max_size=60
)
questions = st.fixed_dictionaries(
    {},
    optional={
        "after": st.integers(0, 60),
        "key": st.tuples(st.sampled_from([None, "order_id", "customer_id"]), st.sampled_from(KEYS)),
        "correlation_ids": st.lists(st.sampled_from([f"c{n}" for n in range(13)]), min_size=1, max_size=4),
        "event_ids": st.lists(st.sampled_from([f"e{n}" for n in range(60)]), min_size=1, max_size=4),
        "types": st.just(["shop.A"]),
        "since": st.integers(0, 40),
        "until": st.integers(0, 40),
    },
)


@given(rows, st.integers(0, 8), st.integers(0, 60), st.sets(st.integers(0, 8)), st.integers(1, 60), st.booleans(), questions)
@settings(max_examples=300, deadline=None)
def test_it_answers_like_a_scan(
    rows: list[Any], condensed: int, trimmed: int, lost: set[int], limit: int, newest: bool, question: dict[str, Any]
) -> None:
    """Blocks of eight rows; some condensed, some of their rows lost again, the log trimmed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "OFFSET_BITS", 3)
        patch.setattr(search, "BLOCK", 8)
        patch.setattr(search, "_OFFSET", 7)
        patch.setattr(search, "_HASH", 0xFFFF_FFF8)
        conn = sqlite3.connect(":memory:", isolation_level=None)
        schema.migrate(conn, ":memory:")
        unit = SQLiteStore("sqlite:///never-opened.db").unit(conn)
        unit.append(envelope(key, f"e{n}", f"c{corr}", time, type_) for n, (key, corr, time, type_) in enumerate(rows))
        for _ in range(condensed):
            if (block := unit.next_block()) is not None:
                unit.add_block(block)
        if trimmed:
            unit.trim(trimmed, limit=60)
            if (block := unit.next_block()) is not None:
                unit.add_block(block)
        for number in lost:
            conn.execute("DELETE FROM tidings_blocks WHERE block = ?", (number,))
        everything = [Envelope(*row) for row in conn.execute("SELECT * FROM tidings_log ORDER BY position")]
        expected = [row for row in everything if fits(row, question)]
        expected = expected[-limit:] if newest else expected[:limit]
        assert unit.select(limit=limit, newest=newest, **question) == expected
        moment = question.get("since", 20)
        later = [row.position for row in everything if row.time >= moment]
        assert unit.first_position_at(moment) == (later[0] - 1 if later else unit.head())
        conn.close()


def test_full_blocks_are_looked_up_and_only_the_tail_is_scanned(store: SQLiteStore) -> None:
    size = search.BLOCK
    store.write(lambda unit: unit.append(envelope(str(n % 4000), f"e{n}", f"c{n // 5}", n) for n in range(2 * size + 100))).result()
    assert store.query(lambda unit: unit.searched_plainly()) == 2 * size + 100
    condense(store)
    assert store.query(lambda unit: unit.searched_plainly()) < size + 200

    conn = store.connect(read_only=True)
    places = list(search.spans(conn, ["17"]))
    conn.close()
    scanned = sum(len(place) for place in places if isinstance(place, range))
    fetched = sum(len(place) for place in places if isinstance(place, list))
    assert scanned <= size + 200
    assert 3 <= fetched < 100
    assert [row.key for row in store.query(lambda unit: unit.select(limit=100, key=("order_id", "17")))] == ["17"] * 5


def test_words_of_one_hash_are_told_apart(store: SQLiteStore) -> None:
    """A collision is fetched and thrown away by the comparison with the real columns."""
    seen: dict[int, str] = {}
    for n in range(5000):
        other = seen.setdefault(search._hash(str(n)), str(n))
        if other != str(n):
            break
    else:
        raise AssertionError("no collision among 5,000 words of 19 bits")
    store.write(lambda unit: unit.append([envelope(other, "e1", "c1", 1), envelope(str(n), "e2", "c2", 2)])).result()
    store.write(lambda unit: unit.append(envelope("z", f"f{n}", f"f{n}", 3) for n in range(search.BLOCK))).result()
    block = store.query(lambda unit: unit.next_block())
    assert block is not None
    store.write(lambda unit: unit.add_block(block)).result()
    assert [row.event_id for row in store.query(lambda unit: unit.select(limit=9, key=(None, other)))] == ["e1"]
    assert [row.event_id for row in store.query(lambda unit: unit.select(limit=9, key=(None, str(n))))] == ["e2"]


def test_a_block_that_is_not_full_is_not_condensed(store: SQLiteStore) -> None:
    store.write(lambda unit: unit.append(envelope("1", f"e{n}", f"e{n}", n) for n in range(search.BLOCK - 2))).result()
    assert store.query(lambda unit: unit.next_block()) is None
    store.write(lambda unit: unit.append([envelope("1", "last", "last", 1)])).result()
    assert store.query(lambda unit: unit.next_block()) is not None


def test_trimmed_blocks_go_away(store: SQLiteStore) -> None:
    store.write(lambda unit: unit.append(envelope("1", f"e{n}", f"e{n}", n) for n in range(2 * search.BLOCK))).result()
    condense(store)
    store.write(lambda unit: unit.trim(search.BLOCK + 10, 100_000)).result()
    conn = store.connect(read_only=True)
    assert conn.execute("SELECT block FROM tidings_blocks").fetchall() == [(1,)]
    conn.close()
