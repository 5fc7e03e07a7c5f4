"""The messages of pgoutput: as real servers write them, and cut off or bent in every way."""

from __future__ import annotations

import struct

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidings.store.postgres import pgoutput
from tidings.store.postgres.pgoutput import (
    UNCHANGED,
    Begin,
    Commit,
    Delete,
    Insert,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Unreadable,
    Update,
    decode,
)

BOTH = pytest.mark.parametrize("postgres", [15, 18], indirect=True)

TABLES = """
CREATE TYPE mood AS ENUM ('calm', 'cross');
CREATE TABLE outbox (id bigserial PRIMARY KEY, aggregate_id bigint, payload jsonb, note text, mood mood);
ALTER TABLE outbox ALTER COLUMN note SET STORAGE EXTERNAL;
CREATE PUBLICATION everything FOR TABLE outbox;
"""


def _read(conn: psycopg.Connection, **options: str) -> list[pgoutput.Change]:
    more = "".join(f", '{name}', '{value}'" for name, value in options.items())
    rows = conn.execute(
        "SELECT data FROM pg_logical_slot_get_binary_changes("
        f"'reading', NULL, NULL, 'proto_version', '1', 'publication_names', 'everything'{more})"
    )
    return [decode(data) for (data,) in rows]


@pytest.fixture
def conn(postgres_url: str):
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(TABLES)
        conn.execute("SELECT pg_create_logical_replication_slot('reading', 'pgoutput')")
        yield conn


@BOTH
def test_a_transaction_as_the_server_writes_it(conn: psycopg.Connection) -> None:
    with conn.transaction():
        conn.execute("INSERT INTO outbox (aggregate_id, payload) VALUES (7, '{\"a\": 1}'), (NULL, NULL)")
        conn.execute("DELETE FROM outbox WHERE id = 1")
        ((xid,),) = conn.execute("SELECT pg_current_xact_id()").fetchall()
    ((at,),) = conn.execute("SELECT extract(epoch FROM now())::float8").fetchall()

    begin, kind, relation, first, second, gone, commit = _read(conn)

    assert isinstance(kind, Type)
    assert kind.name == "mood"
    assert isinstance(begin, Begin)
    assert begin.xid == int(xid) & 0xFFFFFFFF
    assert abs(begin.time / 1e6 - at) < 60
    assert isinstance(commit, Commit)
    assert begin.lsn == commit.lsn < commit.end
    assert isinstance(relation, Relation)
    assert (relation.schema, relation.name, relation.identity) == ("public", "outbox", "d")
    assert [(column.name, column.key) for column in relation.columns] == [
        ("id", True),
        ("aggregate_id", False),
        ("payload", False),
        ("note", False),
        ("mood", False),
    ]
    assert first == Insert(relation.oid, [b"1", b"7", b'{"a": 1}', None, None])
    assert second == Insert(relation.oid, [b"2", None, None, None, None])
    assert gone == Delete(relation.oid, [b"1", None, None, None, None])


@BOTH
@pytest.mark.promise("nothing lost")
def test_rows_of_one_statement_share_the_commits_lsn_and_keep_their_order(conn: psycopg.Connection) -> None:
    """What has an LSN of its own is the commit alone, so a position is that and an ordinal."""
    with conn.transaction():
        conn.execute("INSERT INTO outbox (aggregate_id) SELECT n FROM generate_series(1, 50) n")
        with conn.cursor().copy("COPY outbox (aggregate_id) FROM STDIN") as copy:
            for n in range(51, 101):
                copy.write_row((n,))
    changes = _read(conn)
    assert [change.row[1] for change in changes if isinstance(change, Insert)] == [b"%d" % n for n in range(1, 101)]
    assert len([change for change in changes if isinstance(change, Begin)]) == 1


@BOTH
def test_the_other_messages(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO outbox (aggregate_id, note) VALUES (1, repeat('x', 10000))")
    conn.execute("UPDATE outbox SET aggregate_id = 2")
    conn.execute("ALTER TABLE outbox REPLICA IDENTITY FULL")
    conn.execute("UPDATE outbox SET aggregate_id = 3, note = 'short'")
    conn.execute("TRUNCATE outbox RESTART IDENTITY")
    conn.execute("SELECT pg_logical_emit_message(true, 'tidings', 'content')")
    conn.execute("SELECT pg_replication_origin_create('elsewhere'), pg_replication_origin_session_setup('elsewhere')")
    conn.execute("INSERT INTO outbox (aggregate_id) VALUES (4)")
    conn.execute("SELECT pg_replication_origin_session_reset(), pg_replication_origin_drop('elsewhere')")

    changes = _read(conn, messages="on")

    first, second = (change for change in changes if isinstance(change, Update))
    assert first.old is None
    assert first.row[1] == b"2"
    assert first.row[3] is UNCHANGED
    assert second.old is not None
    assert second.old[1] == b"2"
    assert second.row[3] == b"short"
    relations = [change for change in changes if isinstance(change, Relation)]
    assert [relation.identity for relation in relations[-1:]] == ["f"]
    (truncate,) = (change for change in changes if isinstance(change, Truncate))
    assert truncate == Truncate((relations[0].oid,), cascade=False, restart_identity=True)
    (message,) = (change for change in changes if isinstance(change, Message))
    assert message[0] is True
    assert message[2:] == ("tidings", b"content")
    assert message.lsn > 0
    assert [change.name for change in changes if isinstance(change, Origin)] == ["elsewhere"]


@BOTH
def test_a_table_that_is_altered_is_described_again(conn: psycopg.Connection) -> None:
    conn.execute("INSERT INTO outbox (aggregate_id) VALUES (1)")
    conn.execute("ALTER TABLE outbox DROP COLUMN note, ADD COLUMN extra integer DEFAULT 5")
    conn.execute("INSERT INTO outbox (aggregate_id) VALUES (2)")
    changes = _read(conn)
    columns = [[column.name for column in change.columns] for change in changes if isinstance(change, Relation)]
    assert columns[0] == ["id", "aggregate_id", "payload", "note", "mood"]
    assert columns[-1] == ["id", "aggregate_id", "payload", "mood", "extra"]
    assert [change.row[-1] for change in changes if isinstance(change, Insert)] == [None, b"5"]


# -- bytes of every kind


def _insert(relation: int, row: list[bytes | None]) -> bytes:
    cells = [b"n" if value is None else b"t" + struct.pack("!I", len(value)) + value for value in row]
    return b"I" + struct.pack("!IcH", relation, b"N", len(row)) + b"".join(cells)


rows = st.lists(st.none() | st.binary(max_size=40), max_size=6)


@given(relation=st.integers(0, 2**32 - 1), row=rows)
def test_both_readers_of_an_insert_agree(relation: int, row: list[bytes | None]) -> None:
    data = _insert(relation, row)
    assert pgoutput.insert(data) == (relation, row)
    assert decode(data) == Insert(relation, list(row))


@given(lsn=st.integers(0, 2**64 - 1), end=st.integers(0, 2**64 - 1), moment=st.integers(-(2**62), 2**62), size=st.integers(0, 40))
def test_both_readers_of_the_ends_of_a_transaction_agree(lsn: int, end: int, moment: int, size: int) -> None:
    first = b"B" + struct.pack("!QqI", lsn, moment, 7)
    last = b"C" + struct.pack("!BQQq", 0, lsn, end, moment)
    begun, ended = decode(first), decode(last)
    assert isinstance(begun, Begin)
    assert isinstance(ended, Commit)
    assert pgoutput.begin(first) == (begun.lsn, begun.time) == (lsn, moment + pgoutput.EPOCH)
    assert pgoutput.commit_end(last) == ended.end == end
    for read, whole in ((pgoutput.begin, first), (pgoutput.commit_end, last)):
        bad = (whole * 2)[:size]
        if len(bad) != len(whole):
            with pytest.raises(Unreadable):
                read(bad)


@given(relation=st.integers(0, 2**32 - 1), row=rows, data=st.data())
def test_what_is_cut_off_or_too_long_is_refused(relation: int, row: list[bytes | None], data: st.DataObject) -> None:
    whole = _insert(relation, row)
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    for bad in (cut, whole + b"x"):
        for read in (decode, pgoutput.insert):
            with pytest.raises(Unreadable):
                read(bad)


@given(st.sampled_from([b"", b"B", b"C", b"I", b"U", b"D", b"R", b"Y", b"T", b"M", b"O", b"?"]), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(kind: bytes, rest: bytes) -> None:
    for read in (decode, pgoutput.insert, pgoutput.keepalive):
        try:
            read(kind + rest)
        except Unreadable:
            pass


def test_positions_in_the_wal() -> None:
    assert pgoutput.lsn("16/B374D848") == 0x16_B374D848
    assert pgoutput.lsn(b"0/0") == 0
    assert pgoutput.lsn_text(0x16_0000000A) == "16/A"


def test_what_we_tell_the_server() -> None:
    told = pgoutput.status(5, 3, 946_684_800_000_007, answer=True)
    assert told == b"r" + struct.pack("!QQQqB", 5, 3, 3, 7, 1)
