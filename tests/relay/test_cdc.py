"""An outbox by CDC: places in a transaction, crashes, slots and publications that vanish, tables that change, and memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import psycopg
import pytest

from servers.postgres import Postgres
from tests.relay.shops import Shop, ids, wait_for
from tidings.relay.layout import DEBEZIUM

BOTH = pytest.mark.parametrize("postgres", [15, 18], indirect=True)
COPY = "COPY outbox (aggregate_id, event_type, payload) FROM STDIN"

UNTICKED = {"after": "nothing", "mode": "cdc"}
"""Rows are left as they are: only the stream knows them."""


def _copy(shop: Shop, count: int) -> list[str]:
    """Rows by COPY in a transaction of their own; their ids."""
    with shop.conn.transaction():
        with shop.conn.cursor().copy(COPY) as copy:
            for n in range(count):
                copy.write_row((1, "shop.Placed", f'{{"n": {n}}}'))
        rows = shop.conn.execute("SELECT id::text FROM outbox ORDER BY outbox.id DESC LIMIT %s", (count,)).fetchall()
    return [id for (id,) in reversed(rows)]


def _began(shop: Shop, **changes: object) -> None:
    """A relay that has run, so that its slot is there."""
    with shop.relay(**{**UNTICKED, **changes}) as relay:
        wait_for(lambda: relay.progress.batches, "the slot")


@BOTH
@pytest.mark.promise("nothing lost", "effects once", "death at any instruction")
@pytest.mark.parametrize("die", ["before the broker", "after the broker"])
def test_a_crash_in_the_middle_of_a_transaction(shop: Shop, die: str) -> None:
    """Rows of one transaction share an LSN, so a place that has no ordinal would lose or repeat some."""
    _began(shop)
    written = _copy(shop, 95) + shop.insert(95)
    for _ in range(40):
        written += shop.insert()
    for at in (2, 5, 12, 3):
        shop.dies(die, at=at, batch=10, **UNTICKED)
    with shop.relay(**UNTICKED):
        written += shop.insert()
        wait_for(lambda: len(shop.seen()) >= len(written), "the rows")
    seen = shop.seen()
    assert ids(seen) == written
    sequences = [record.headers["ce_sequence"] for record in seen]
    assert sequences == sorted(set(sequences))


@pytest.mark.promise("effects once", "nothing lost", "death at any instruction")
def test_a_crash_between_the_brokers_answer_and_the_confirmation(shop: Shop) -> None:
    _began(shop)
    with shop.process("--mode", "cdc", "--after", "nothing") as relay:
        relay.await_event("leading")
        ((before,),) = shop.conn.execute("SELECT pg_current_wal_insert_lsn()::text").fetchall()
        written = shop.insert(30)
        wait_for(lambda: len(shop.seen()) == 30, "the rows")
        relay.kill()  # within the seconds in which nothing is confirmed
    query = "SELECT confirmed_flush_lsn <= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
    assert shop.conn.execute(query, (before, f"tidings_{shop.name}")).fetchone() == (True,)
    with shop.relay(**UNTICKED):
        written += shop.insert()
        wait_for(lambda: len(shop.seen()) >= len(written), "the rows")
    assert ids(shop.seen()) == written


@BOTH
@pytest.mark.promise("effects once", "nothing lost")
def test_what_is_there_goes_first_and_both_ways_of_reading_hand_over(shop: Shop) -> None:
    written = shop.insert(120)
    with shop.relay(mode="cdc", batch=50):
        shop.await_ticked()
        written += shop.insert(10)
        shop.await_ticked()
    for mode in ("poll", "cdc", "poll"):
        written += shop.insert(10)
        with shop.relay(mode=mode):
            shop.await_ticked()
            written += shop.insert(10)
            shop.await_ticked()
    assert ids(shop.seen()) == written


@pytest.mark.promise("effects once", "nothing lost", "death at any instruction")
@pytest.mark.parametrize("die", ["before the broker", "after the broker", "after the tick"])
@pytest.mark.parametrize("at", [1, 3])
def test_a_crash_while_that_what_is_there_is_sent(shop: Shop, die: str, at: int) -> None:
    written = shop.insert(50)
    shop.dies(die, at=at, mode="cdc", batch=10)
    written += shop.insert(5)  # before the next slot's start
    with shop.relay(mode="cdc"):
        shop.await_ticked()
    assert ids(shop.seen()) == written


@pytest.mark.promise("nothing lost", "effects once")
def test_a_slot_that_is_lost_loses_nothing_where_rows_are_ticked_off(shop: Shop) -> None:
    written = shop.insert(5)
    with shop.relay(mode="cdc"):
        shop.await_ticked()
    written += shop.insert(5)
    shop.conn.execute("SELECT pg_drop_replication_slot(%s)", (f"tidings_{shop.name}",))
    written += shop.insert(5)
    with shop.relay(mode="cdc") as relay:
        shop.await_ticked()
        written += shop.insert(5)
        shop.await_ticked()
    assert "is gone" in next(facts["text"] for event, facts in relay.told if event == "note")  # type: ignore[attr-defined]
    assert ids(shop.seen()) == written


def _lose_slot(shop: Shop) -> None:
    """Once the server has seen that nobody reads it any more."""

    def gone() -> bool:
        try:
            shop.conn.execute("SELECT pg_drop_replication_slot(%s)", (f"tidings_{shop.name}",))
        except psycopg.errors.ObjectInUse:
            return False
        return True

    wait_for(gone, "the slot to be free")


@pytest.mark.promise("nothing lost", "death at any instruction")
@pytest.mark.parametrize("die", ["before the broker", "after the broker"])
def test_a_crash_after_a_lost_slot_was_replaced(shop: Shop, die: str) -> None:
    """The new slot's stream lacks what was written before it; it is there already at the next start."""
    written = shop.insert(5)
    with shop.relay(mode="cdc"):
        shop.await_ticked()
    _lose_slot(shop)
    written += shop.insert(5)
    shop.dies(die, mode="cdc")
    written += shop.insert(5)
    with shop.relay(mode="cdc"):
        shop.await_ticked()
    assert ids(shop.seen()) == written


@pytest.mark.promise("nothing lost", "nothing vanishes")
def test_a_slot_that_is_lost_is_a_question_where_they_are_not(shop: Shop) -> None:
    _began(shop)
    shop.conn.execute("SELECT pg_drop_replication_slot(%s)", (f"tidings_{shop.name}",))
    shop.insert(5)
    said = shop.fails(**UNTICKED)
    assert f"the slot tidings_{shop.name} is gone" in said
    assert "--resume-from table" in said
    assert not shop.seen()
    with shop.relay(**UNTICKED, resume_from="table") as relay:
        wait_for(lambda: relay.progress.leading and relay.progress.batches, "the new slot")
        written = shop.insert(2)
        wait_for(lambda: relay.progress.sent == 2, "the rows")
    assert ids(shop.seen()) == written


@BOTH
@pytest.mark.promise("nothing lost", "effects once")
@pytest.mark.parametrize("while_running", [True, False])
def test_a_publication_that_vanishes(shop: Shop, while_running: bool) -> None:
    """Newer servers go on without a word, and leave the rows out."""
    written = shop.insert(3)
    drop = f"DROP PUBLICATION tidings_{shop.name}"
    with shop.relay(mode="cdc"):
        shop.await_ticked()
        if while_running:
            shop.conn.execute(drop)
            written += shop.insert(3)
            shop.await_ticked()
    if not while_running:
        shop.conn.execute(drop)
        written += shop.insert(3)
        shop.conn.execute(f"CREATE PUBLICATION tidings_{shop.name} FOR TABLE outbox WITH (publish = 'insert')")
        written += shop.insert(3)
    with shop.relay(mode="cdc"):
        shop.await_ticked()
        written += shop.insert(3)
        shop.await_ticked()
    assert ids(shop.seen()) == written


def test_a_publication_that_vanished_is_a_question_where_rows_are_not_ticked_off(shop: Shop) -> None:
    _began(shop)
    shop.conn.execute(f"DROP PUBLICATION tidings_{shop.name}")
    said = shop.fails(**UNTICKED)
    assert "was made anew" in said
    assert "--resume-from table" in said


@BOTH
@pytest.mark.promise("nothing lost", "effects once")
def test_a_table_that_is_altered_while_it_is_read(shop: Shop) -> None:
    written = shop.insert(3)
    with shop.relay(mode="cdc"):
        shop.await_ticked()
        with shop.conn.transaction():
            written += shop.insert(3)
            shop.conn.execute("ALTER TABLE outbox ADD COLUMN first text DEFAULT 'new'")
            written += shop.insert(3)
        shop.await_ticked()
        shop.conn.execute("ALTER TABLE outbox DROP COLUMN created_at, ADD COLUMN created_at timestamptz DEFAULT now()")
        written += shop.insert(3)
        shop.await_ticked()
    assert ids(shop.seen()) == written
    assert all(record.headers["ce_type"] == b"shop.Placed" for record in shop.seen())


@pytest.mark.promise("nothing lost", "nothing vanishes")
def test_a_column_that_is_gone_stops_the_relay_and_another_lets_it_go_on(shop: Shop) -> None:
    _began(shop)
    with shop.relay(**UNTICKED) as relay:
        written = shop.insert(2)
        wait_for(lambda: relay.progress.sent == 2, "the rows")
        shop.conn.execute("ALTER TABLE outbox RENAME COLUMN event_type TO kind")
        written += [
            id for (id,) in shop.conn.execute("INSERT INTO outbox (aggregate_id, kind) VALUES (1, 'shop.Placed') RETURNING id::text")
        ]
        failed: list[BaseException] = relay.failed  # type: ignore[attr-defined]
        wait_for(lambda: failed, "the relay to stop")
        said = str(failed.pop())
    assert "lost its column 'event_type'" in said
    assert "--columns" in said
    with shop.relay(**UNTICKED, columns=("type=kind",)):
        wait_for(lambda: len(shop.seen()) == len(written), "the rest")
    assert ids(shop.seen()) == written


@pytest.mark.promise("nothing lost", "nothing vanishes")
def test_columns_that_were_renamed_or_added_while_no_relay_ran(shop: Shop) -> None:
    """Rows from before come as they were then: neither of the names is right for all of them."""
    _began(shop)
    written = shop.insert(2)
    shop.conn.execute("ALTER TABLE outbox RENAME COLUMN event_type TO kind; ALTER TABLE outbox ADD COLUMN region text")
    row = shop.conn.execute("INSERT INTO outbox (aggregate_id, kind, region) VALUES (1, 'shop.Late', 'eu') RETURNING id::text").fetchone()
    assert row is not None
    assert "has no column 'event_type'" in shop.fails(**UNTICKED)
    said = shop.fails(**UNTICKED, columns=("type=kind", "header.region=region"))
    assert "have no column 'kind', but id, aggregate_id, event_type" in said
    assert "kind|EARLIER" in said
    said = shop.fails(**UNTICKED, columns=("type=kind|event_type", "header.region=region"))
    assert "have no column 'region'" in said
    with shop.relay(**UNTICKED, columns=("type=kind|event_type", "header.region=region|")):
        wait_for(lambda: len(shop.seen()) == 3, "the rows")
    seen = shop.seen()
    assert ids(seen) == [*written, row[0]]
    assert [one.headers["ce_type"] for one in seen] == [b"shop.Placed", b"shop.Placed", b"shop.Late"]
    assert [one.headers.get("region") for one in seen] == [None, None, b"eu"]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.promise("bounded", "nothing lost")
def test_a_transaction_of_100_megabytes(shop: Shop) -> None:
    _began(shop)
    count = 25_000
    with shop.process("--mode", "cdc", "--after", "nothing") as relay:
        relay.await_event("leading")
        before = relay.peak
        shop.conn.execute(
            "INSERT INTO outbox (aggregate_id, event_type, payload) SELECT n, 'shop.Placed', to_jsonb(repeat(md5(n::text), 125))"
            " FROM generate_series(1, %s) n",
            (count,),
        )
        wait_for(lambda: shop.conn.execute("SELECT pg_current_wal_lsn()").fetchone() and len(shop.seen()) == count, "the rows", 120)
        grown = relay.peak - before
        assert relay.stop() == 0
    assert grown < 64 << 20, f"memory grew by {grown >> 20} MiB"
    seen = shop.seen()
    assert sorted(map(int, ids(seen))) == list(range(1, count + 1))


@pytest.mark.promise("bounded")
def test_an_idle_database_holds_no_wal_back(shop: Shop, postgres: Postgres) -> None:
    """Others on the server write; this database doesn't."""
    other = psycopg.connect(postgres.url(), autocommit=True)
    other.execute("CREATE TABLE IF NOT EXISTS elsewhere (n integer)")
    _began(shop)
    with shop.relay(**UNTICKED) as relay:
        wait_for(lambda: relay.progress.leading, "the lead")
        other.execute("INSERT INTO elsewhere SELECT generate_series(1, 50000)")
        row = other.execute("SELECT pg_current_wal_insert_lsn()::text").fetchone()
        assert row is not None

        def passed() -> bool:
            query = "SELECT confirmed_flush_lsn >= %s::pg_lsn FROM pg_replication_slots WHERE slot_name = %s"
            found = shop.conn.execute(query, (row[0], f"tidings_{shop.name}")).fetchone()
            return found is not None and bool(found[0])

        wait_for(passed, "the slot to move", 30)
    other.execute("DROP TABLE elsewhere")
    other.close()


def test_it_refuses_to_fill_the_disk(shop: Shop) -> None:
    said = shop.fails(mode="cdc", unlimited_wal=False)
    assert "max_slot_wal_keep_size" in said
    assert "--unlimited-wal" in said
    assert shop.conn.execute("SELECT FROM pg_replication_slots WHERE slot_name = %s", (f"tidings_{shop.name}",)).fetchone() is None


def test_somebody_elses_slot_is_left_alone(shop: Shop) -> None:
    shop.conn.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (f"tidings_{shop.name}",))
    assert "take another name with --name or --slot" in shop.fails(mode="cdc")
    assert shop.conn.execute("SELECT 1 FROM pg_replication_slots WHERE slot_name = %s", (f"tidings_{shop.name}",)).fetchone() == (1,)


def test_rights_that_are_missing_for_it(shop: Shop) -> None:
    role = f"reader_{shop.name}"
    shop.conn.execute(f"CREATE ROLE {role} LOGIN")
    try:
        shop.conn.execute(f"GRANT SELECT, UPDATE ON outbox TO {role}; GRANT USAGE, SELECT ON SEQUENCE outbox_id_seq TO {role}")
        url = shop.url.replace("tidings@", f"{role}@")
        said = shop.fails(url=url, mode="cdc")
        assert f'CREATE PUBLICATION "tidings_{shop.name}" FOR TABLE public.outbox' in said
        shop.conn.execute(said.partition("run: ")[2])
        said = shop.fails(url=url, mode="cdc")
        assert "ALTER ROLE" in said
        assert "REPLICATION" in said
        shop.conn.execute(f"ALTER ROLE {role} REPLICATION")
        written = shop.insert(2)
        with shop.relay(url=url, mode="cdc"):
            shop.await_ticked()
        assert ids(shop.seen()) == written
    finally:
        shop.conn.execute(f"DROP OWNED BY {role}")
        shop.conn.execute(f"DROP ROLE {role}")


# -- Debezium's layout

DEBEZIUM_TABLE = """
    DROP TABLE outbox;
    CREATE TABLE outbox (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), aggregatetype varchar(255) NOT NULL,
                         aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload jsonb)"""


@BOTH
@pytest.mark.promise("nothing lost", "effects once", "order per key")
def test_debeziums_outbox_with_rows_that_are_gone_at_once(shop: Shop) -> None:
    shop.conn.execute(DEBEZIUM_TABLE)
    with shop.relay(layout=DEBEZIUM, mode="cdc", columns=("header.eventType=type",)) as relay:
        wait_for(lambda: relay.progress.batches, "the slot")
        written = []
        for n, (kind, payload) in enumerate([("order", '{"n": 1}'), ("order", '{"n": 2}'), ("customer", None)] * 3):
            with shop.conn.transaction():
                row = shop.conn.execute(
                    "INSERT INTO outbox (aggregatetype, aggregateid, type, payload) VALUES (%s, '7', 'Changed', %s) RETURNING id::text",
                    (kind, payload),
                ).fetchone()
                assert row is not None
                written.append((row[0], kind, payload))
                if n < 6:
                    shop.conn.execute("DELETE FROM outbox WHERE id = %s", row)
        wait_for(lambda: relay.progress.sent == len(written), "the rows")
    for kind in ("order", "customer"):
        seen = [record for record in shop.seen(f"outbox.event.{kind}") if record.id in {id for id, _, _ in written}]
        assert [(record.id, record.value) for record in seen] == [
            (id, None if payload is None else payload.encode()) for id, of, payload in written if of == kind
        ]
        assert all(record.key == b"7" and record.headers == {"id": record.id.encode(), "eventType": b"Changed"} for record in seen)


@pytest.mark.promise("effects once")
def test_debeziums_outbox_by_polling_deletes_what_was_sent(shop: Shop) -> None:
    shop.conn.execute(DEBEZIUM_TABLE)
    assert "--after delete" in shop.fails(layout=DEBEZIUM, mode="poll")
    shop.conn.execute(
        "INSERT INTO outbox (aggregatetype, aggregateid, type) SELECT 'thing', n::text, 'Changed' FROM generate_series(1, 30) n"
    )
    written = [id for (id,) in shop.conn.execute("SELECT id::text FROM outbox")]
    with shop.relay(layout=DEBEZIUM, mode="poll", after="delete", batch=10):
        wait_for(lambda: shop.conn.execute("SELECT count(*) FROM outbox").fetchone() == (0,), "the rows to go")
    assert Counter(ids(shop.seen("outbox.event.thing"))) == Counter(written)


def test_rows_of_partitions(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop()
    shop.conn.execute("ALTER TABLE outbox RENAME TO plain")
    shop.conn.execute("CREATE TABLE outbox (LIKE plain INCLUDING DEFAULTS, PRIMARY KEY (id)) PARTITION BY RANGE (id)")
    for n in range(2):
        shop.conn.execute(f"CREATE TABLE outbox_{n} PARTITION OF outbox FOR VALUES FROM ({n * 10 + 1}) TO ({n * 10 + 11})")
    with shop.relay(mode="cdc"):
        written = shop.insert(5)
        shop.await_ticked()
        written += shop.insert(10)
        shop.await_ticked()
    assert ids(shop.seen()) == written
