"""Somebody else's table: which rows have no tick, in which order, and ticking them off."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tidings.store.postgres import outbox as module
from tidings.store.postgres.horizon import Horizon
from tidings.store.postgres.outbox import OutboxTable


@pytest.fixture
def conn(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        conn.execute(
            'CREATE SCHEMA "odd ""name"; CREATE TABLE "odd ""name"."out\'box" ("i d" bigserial PRIMARY KEY, "flag" boolean, body text)'
        )
        yield conn


NAME = '"odd ""name"."out\'box"'


def _table(conn: psycopg.Connection, **options: bool) -> OutboxTable:
    return OutboxTable(conn, NAME, id="i d", columns=["body"], published="flag", **options)  # type: ignore[arg-type]


def _insert(conn: psycopg.Connection, *ids: int) -> None:
    for id in ids:
        conn.execute(f'INSERT INTO {NAME} ("i d", body) VALUES (%s, %s)', (id, f"b{id}"))


def test_names_that_need_quotes_and_a_flag_that_may_be_null(conn: psycopg.Connection) -> None:
    table = _table(conn)
    assert table.ordered
    assert not table.pooled
    assert table.advice == f'CREATE INDEX CONCURRENTLY ON {NAME} ("i d") WHERE "flag" IS NOT TRUE'
    conn.execute(f"INSERT INTO {NAME} (flag, body) VALUES (NULL, 'a'), (false, 'b'), (true, 'c'), (NULL, NULL)")
    assert table.ahead(conn, None, 10, 10) == [[b"1", b"a"], [b"2", b"b"], [b"4", None]]
    assert table.ahead(conn, "1", 3, 10) == [[b"2", b"b"]]
    assert table.tick(conn, ["1", "4"]) == 2
    assert table.tick(conn, ["1", "4"]) == 0
    assert table.waiting(conn, 10)[0] == 1
    conn.execute(table.advice)
    assert _table(conn).indexed


def test_ids_are_compared_as_numbers(conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WINDOW", 4)
    table = _table(conn)
    _insert(conn, 2, 9, 10, 11, 100, 101)
    assert table.behind(conn, "100", 10) == ["2", "9", "10", "11", "100"]
    assert table.window(conn, "0", "100") == ("11", ["2", "9", "10", "11"])
    assert table.window(conn, "11", "100") == (None, ["100"])
    assert [row[0] for row in table.these(conn, ["100", "9", "10"])] == [b"9", b"10", b"100"]


def test_rows_that_the_sequence_has_not_given_out(conn: psycopg.Connection) -> None:
    table = _table(conn)
    horizon = Horizon(table.oid, table.sequence)
    horizon.observe(conn)
    conn.execute(f"INSERT INTO {NAME} (body) SELECT 'x' FROM generate_series(1, 5)")
    _insert(conn, 50)
    assert horizon.drawn == 0
    assert table.beyond(conn, horizon, 10) == ["50"]


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("deletes", [False, True])
def test_a_row_that_was_written_again_is_not_ticked_off_for_what_was_sent_before(conn: psycopg.Connection, deletes: bool) -> None:
    table = _table(conn, deletes=deletes)
    _insert(conn, 1, 2, 3)
    point = table.now(conn)
    if deletes:
        conn.execute(f'DELETE FROM {NAME} WHERE "i d" = 2')
        _insert(conn, 2)
    else:
        conn.execute(f'UPDATE {NAME} SET flag = true WHERE "i d" = 2; UPDATE {NAME} SET flag = false WHERE "i d" = 2')
    assert table.tick(conn, ["1", "2"], before=point) == 1
    assert sorted(row[0] or b"" for row in table.ahead(conn, None, 10, 10)) == [b"2", b"3"]


def test_a_pool_of_ids_is_told(conn: psycopg.Connection) -> None:
    conn.execute('ALTER SEQUENCE "odd ""name"."out\'box_i d_seq" INCREMENT 50')
    assert _table(conn).pooled
