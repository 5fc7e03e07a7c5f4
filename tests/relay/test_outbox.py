"""Somebody else's outbox table by polling: what is there, what comes late, and whoever dies in between."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tests.relay.shops import Shop, by_key, ids, wait_for

BOTH = pytest.mark.parametrize("postgres", [15, 18], indirect=True)


@BOTH
@pytest.mark.promise("order per key", "nothing lost")
def test_what_is_there_goes_first_and_then_what_comes(shop: Shop) -> None:
    there = shop.insert(2_500)
    with shop.relay():
        shop.await_ticked()
        later = shop.insert(10)
        shop.await_ticked()
    seen = shop.seen()
    assert ids(seen) == there + later  # one key, so one partition
    assert not any(record.late for record in seen)


def test_a_row_as_a_cloudevent(shop: Shop) -> None:
    shop.conn.execute(
        "INSERT INTO outbox (aggregate_id, event_type, payload, created_at) VALUES"
        " (7, 'shop.Placed', '{\"n\": 1}', '2026-01-31 12:00:00.5+01'), (NULL, 'shop.Placed', NULL, NULL)"
    )
    with shop.relay(source="shop", columns=("header.region=event_type",)):
        shop.await_ticked()
    first, second = sorted(shop.seen(), key=lambda record: record.id)
    assert first.key == b"7"
    assert first.value == b'{"n": 1}'
    assert first.time > 1_769_857_200_500 + 86_400_000  # when it was sent: a broker's retention counts from it
    assert first.headers == {
        "ce_specversion": b"1.0",
        "ce_id": b"1",
        "ce_source": b"shop",
        "ce_type": b"shop.Placed",
        "ce_time": b"2026-01-31T11:00:00.5Z",
        "ce_partitionkey": b"7",
        "ce_sequence": b"00000000000000000001",
        "content-type": b"application/json",
        "region": b"shop.Placed",
    }
    assert (second.key, second.value) == (None, None)
    assert "ce_time" not in second.headers


@pytest.mark.parametrize("id", ["serial", "bigint GENERATED ALWAYS AS IDENTITY", "uuid"])
@pytest.mark.parametrize("index", [True, False])
@pytest.mark.promise("nothing lost")
def test_ids_of_every_kind(new_shop: Callable[..., Shop], id: str, index: bool) -> None:
    shop = new_shop(id=id, index=index)
    written = shop.insert(300)
    with shop.relay(batch=100):
        shop.await_ticked()
        written += shop.insert(50)
        shop.await_ticked()
    seen = shop.seen()
    assert sorted(ids(seen)) == sorted(written)
    assert ("ce_sequence" in seen[0].headers) == (id != "uuid")


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.promise("nothing lost")
def test_rows_that_come_behind_the_cursor(new_shop: Callable[..., Shop], index: bool) -> None:
    """Two writers with pools of ids, drawn before they insert; smaller ids and larger ones by hand."""
    shop = new_shop(index=index)
    insert = "INSERT INTO outbox (id, aggregate_id, event_type) VALUES (%s, 1, 'shop.Placed')"
    pools = [[id for (id,) in shop.conn.execute("SELECT nextval('outbox_id_seq') FROM generate_series(1, 50)")] for _ in range(2)]
    with shop.relay():
        for first, second in zip(*reversed(pools), strict=True):  # the later pool first
            shop.conn.execute(insert, (first,))
            if first % 10 == 0:
                shop.await_ticked()
            shop.conn.execute(insert, (second,))
        for id in (-5, 1_000_000, 10**15):
            shop.conn.execute(insert, (id,))
        shop.await_ticked()
        on_time = shop.insert(3)
        shop.await_ticked()
    seen = shop.seen()
    expected = [str(id) for id in [*pools[0], *pools[1], -5, 1_000_000, 10**15]]
    assert sorted(ids(seen)) == sorted(expected + on_time)
    late = {record.id for record in seen if record.late}
    assert {"-5", "1000000", str(10**15)} <= late
    assert not late & set(on_time)


@pytest.mark.promise("effects once", "nothing lost")
def test_a_flag_that_is_set_back_by_hand_sends_the_row_again(shop: Shop) -> None:
    written = shop.insert(20)
    with shop.relay():
        shop.await_ticked()
        shop.conn.execute("UPDATE outbox SET published = false WHERE id = %s", (written[7],))
        shop.await_ticked()
    seen = shop.seen()
    assert Counter(ids(seen)) == {**Counter(written), written[7]: 2}
    assert [record.id for record in seen if record.late] == [written[7]]


@pytest.mark.promise("effects once")
def test_rows_that_somebody_else_has_flagged_are_not_sent(shop: Shop) -> None:
    written = shop.insert(20)
    shop.conn.execute("UPDATE outbox SET published = true WHERE id = ANY(%s::text[]::bigint[])", (written[5:10],))
    with shop.relay():
        shop.await_ticked()
    assert ids(shop.seen()) == written[:5] + written[10:]


@pytest.mark.promise("effects once", "death at any instruction")
@pytest.mark.parametrize("die", ["before the broker", "after the broker", "after the tick"])
@pytest.mark.parametrize("id", ["bigserial", "uuid"])
def test_sent_but_not_ticked_is_known_from_never_sent(new_shop: Callable[..., Shop], die: str, id: str) -> None:
    shop = new_shop(id=id)
    written = shop.insert(50)
    shop.dies(die, at=3, batch=10)
    with shop.relay():
        shop.await_ticked()
    assert sorted(ids(shop.seen())) == sorted(written)


@pytest.mark.promise("effects once", "nothing lost")
def test_what_the_application_did_to_a_batch_between_a_crash_and_the_next_start(shop: Shop) -> None:
    """Sent and ticked off, then set back by hand: again. Sent and not ticked off, then flagged by somebody else: not again."""
    written = shop.insert(10)
    shop.dies("after the tick")
    shop.conn.execute("UPDATE outbox SET published = false WHERE id = %s", (written[3],))
    with shop.relay():
        shop.await_ticked()
    assert Counter(ids(shop.seen())) == {**Counter(written), written[3]: 2}

    more = shop.insert(10)
    shop.dies("after the broker")
    shop.conn.execute("UPDATE outbox SET published = true WHERE id = %s", (more[4],))
    with shop.relay():
        shop.await_ticked()
    assert Counter(ids(shop.seen())) == {**Counter(written), written[3]: 2, **Counter(more)}


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("id", ["bigserial", "uuid"])
def test_rows_can_be_deleted_instead(new_shop: Callable[..., Shop], id: str) -> None:
    shop = new_shop(id=id)
    shop.conn.execute("ALTER TABLE outbox DROP COLUMN published")
    written = shop.insert(30)

    def left() -> bool:
        return shop.conn.execute("SELECT FROM outbox LIMIT 1").fetchone() is not None

    shop.dies("after the broker", columns=("published=",), after="delete")
    assert left()
    with shop.relay(columns=("published=",), after="delete"):
        wait_for(lambda: not left(), "the rows to go")
    assert sorted(ids(shop.seen())) == sorted(written)


@BOTH
@pytest.mark.promise("order per key")
def test_a_row_waits_for_who_could_still_write_before_it(shop: Shop) -> None:
    with shop.relay() as relay, psycopg.connect(shop.url) as slow:
        (before,) = shop.insert(conn=slow)  # drawn, and not committed
        (after,) = shop.insert()
        shop.conn.execute("INSERT INTO outbox (id, aggregate_id, event_type) VALUES (1000, 1, 'shop.Placed')")
        wait_for(lambda: relay.progress.late, "the row that the sequence has not given out")  # so everything was looked at
        slow.commit()
        shop.await_ticked()
    assert ids(shop.seen()) == ["1000", before, after]
    assert [record.id for record in shop.seen() if record.late] == ["1000"]


@BOTH
@pytest.mark.promise("order per key", "nothing lost")
def test_order_per_key_beside_slow_transactions(shop: Shop) -> None:
    """Writers that lock their aggregate first, dawdle, roll back; with ids that are in no order of commits."""
    shop.conn.execute("CREATE TABLE aggregate (id bigint PRIMARY KEY, version bigint NOT NULL)")
    shop.conn.execute("INSERT INTO aggregate SELECT n, 0 FROM generate_series(1, 40) n")
    seed = 7
    stop = threading.Event()

    def write(number: int) -> None:
        dice = random.Random(seed * 100 + number)
        with psycopg.connect(shop.url) as conn:
            while not stop.is_set():
                key = dice.randrange(1, 41)
                conn.execute("SELECT version FROM aggregate WHERE id = %s FOR UPDATE", (key,))
                for _ in range(dice.randrange(1, 4)):
                    conn.execute(
                        "WITH next AS (UPDATE aggregate SET version = version + 1 WHERE id = %s RETURNING version)"
                        " INSERT INTO outbox (aggregate_id, event_type, payload) SELECT %s, 'shop.Changed', to_jsonb(version) FROM next",
                        (key, key),
                    )
                if dice.random() < 0.5:
                    conn.execute("SELECT pg_sleep(%s)", (dice.random() / 20,))
                if dice.random() < 0.1:
                    conn.rollback()
                else:
                    conn.commit()

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    with shop.relay(batch=50):
        for writer in writers:
            writer.start()
        time.sleep(3)
        stop.set()
        for writer in writers:
            writer.join()
        shop.await_ticked()
    seen = shop.seen()
    row = shop.conn.execute("SELECT count(*) FROM outbox").fetchone()
    assert row is not None
    assert len(seen) == row[0] > 100, f"seed {seed}"
    assert not any(record.late for record in seen), f"seed {seed}"
    for key, records in by_key(seen).items():
        versions = [int(record.value or b"") for record in records]
        assert versions == list(range(1, len(versions) + 1)), f"seed {seed}, key {key!r}"


@pytest.mark.promise("nothing lost")
def test_what_a_crash_of_the_server_takes_back_was_not_sent(new_shop: Callable[..., Shop], postgres: Postgres) -> None:
    """A writer that doesn't wait for the disk: what was sent is in the table after an immediate restart."""
    shop = new_shop()
    shop.conn.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
    shop.conn.execute("SELECT pg_reload_conf()")
    try:
        with shop.relay():
            shop.insert()
            shop.await_ticked()
        shop.conn.execute("SET synchronous_commit = off")
        (id,) = shop.insert()
        shop.dies("after the broker")
        postgres.restart("immediate")
        shop.reconnect()
        assert id in ids(shop.seen())
        assert shop.conn.execute("SELECT id FROM outbox WHERE id = %s", (id,)).fetchone(), f"{id} was sent and is gone"
    finally:
        postgres.execute("ALTER SYSTEM RESET wal_writer_delay")


# -- whoever dies


@pytest.mark.processes
@pytest.mark.promise("death at any instruction", "effects once")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_relays_killed_at_random(shop: Shop, mode: str) -> None:
    """Eight SIGKILLs while rows are written; a plain consumer sees each row once and in order."""
    seed = 11
    dice = random.Random(seed)
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        with psycopg.connect(shop.url, autocommit=True) as conn:
            while not stop.is_set():
                written.extend(shop.insert(dice.randrange(1, 40), conn=conn))
                stop.wait(0.01)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            with shop.process("--mode", mode, "--batch", "25") as relay:
                relay.await_event("leading")
                time.sleep(dice.random() * 0.5)
                relay.kill()
    finally:
        stop.set()
        writer.join()
    with shop.process("--mode", mode) as relay:
        shop.await_ticked()
        assert relay.stop() == 0
    seen = shop.seen()
    assert len(seen) == len(written) > 300, f"seed {seed}"
    assert ids(seen) == written, f"seed {seed}"


@pytest.mark.processes
@pytest.mark.promise("death at any instruction", "effects once")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_a_standby_takes_over_from_a_killed_and_from_a_frozen_leader(shop: Shop, mode: str) -> None:
    with shop.process("--mode", mode) as first:
        first.await_event("leading")
        with shop.process("--mode", mode) as second:
            second.await_event("standby")
            written = shop.insert(10)
            shop.await_ticked()
            first.kill()
            second.await_event("leading")
            written += shop.insert(10)
            shop.await_ticked()
            with shop.process("--mode", mode) as third:
                third.await_event("standby")
                second.signal(signal.SIGSTOP)
                written += shop.insert(10)
                third.await_event("leading")
                shop.await_ticked()
                second.signal(signal.SIGCONT)
                written += shop.insert(10)
                wait_for(lambda: any(one["event"] in ("standby", "trouble") for one in second.told[2:]), "the woken one to see")
                shop.await_ticked()
                assert third.stop() == 0
                shop.insert(0)
            wait_for(lambda: [one["event"] for one in second.told].count("leading") == 2, "the woken one to lead again")
            written += shop.insert(10)
            shop.await_ticked()
            assert second.stop() == 0
    assert ids(shop.seen()) == written


@pytest.mark.promise("nothing lost", "effects once")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_the_server_and_the_broker_crash(shop: Shop, postgres: Postgres, mode: str) -> None:
    written = shop.insert(100)
    with shop.relay(mode=mode, batch=20):
        shop.await_ticked()
        crashes: list[Callable[[], None]] = [lambda: postgres.restart("immediate"), shop.kafka.kill]
        for crash in crashes:
            written += shop.insert(100)
            crash()
            shop.kafka.start()
            shop.reconnect()
            written += shop.insert(100)
            shop.await_ticked()
    assert ids(shop.seen()) == written


# -- what can't be sent


@pytest.mark.promise("nothing vanishes")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_a_row_that_cannot_be_sent_stops_the_relay_or_is_left_out_by_name(shop: Shop, mode: str) -> None:
    written = shop.insert(3)
    shop.conn.execute("INSERT INTO outbox (aggregate_id, event_type, payload) VALUES (1, NULL, '{}')")
    shop.conn.execute("INSERT INTO outbox (aggregate_id, event_type, payload) VALUES (1, 'shop.Large', to_jsonb(repeat('x', 3000000)))")
    written += shop.insert(3)
    said = shop.fails(mode=mode)
    assert said.startswith("the row 4 of outbox can't be sent: the column event_type is empty")
    assert "\n" not in said
    with shop.relay(mode=mode, skip_unsendable=True) as relay:
        shop.await_ticked()
    assert ids(shop.seen()) == written
    assert [facts["id"] for event, facts in relay.told if event == "skipped"] == ["4", "5"]  # type: ignore[attr-defined]
    assert relay.progress.skipped == 2


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_rows_before_one_that_cannot_be_sent_are_sent(shop: Shop, mode: str) -> None:
    options = {"mode": mode, "after": "nothing"} if mode == "cdc" else {}
    if mode == "cdc":
        with shop.relay(**options) as relay:
            wait_for(lambda: relay.progress.leading, "the relay to lead")
    written = shop.insert(3)
    shop.conn.execute("INSERT INTO outbox (aggregate_id, event_type, payload) VALUES (1, NULL, '{}')")
    later = shop.insert(2)
    for _ in range(2):
        assert shop.fails(**options).startswith("the row 4 of outbox can't be sent")
        assert ids(shop.seen()) == written
    with shop.relay(**options, skip_unsendable=True):
        wait_for(lambda: len(shop.seen()) == 5, "the rest")
    assert ids(shop.seen()) == written + later


@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_payloads_and_keys_of_bytes(shop: Shop, mode: str) -> None:
    shop.conn.execute(
        "ALTER TABLE outbox DROP COLUMN payload, DROP COLUMN aggregate_id, ADD COLUMN payload bytea, ADD COLUMN aggregate_id bytea"
    )
    insert = "INSERT INTO outbox (aggregate_id, event_type, payload) VALUES (%s, 'shop.Placed', %s)"
    content = bytes(range(256))
    shop.conn.execute(insert, (b"k\0", content))
    with shop.relay(mode=mode):
        shop.await_ticked()
        shop.conn.execute(insert, (None, None))
        shop.conn.execute(insert, (b"", content))
        shop.await_ticked()
    assert sorted((one.id, one.key, one.value) for one in shop.seen()) == [("1", b"k\0", content), ("2", None, None), ("3", b"", content)]


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_a_time_says_that_a_row_was_sent(shop: Shop, mode: str) -> None:
    shop.conn.execute("ALTER TABLE outbox ADD COLUMN sent_at timestamptz")
    options: dict[str, Any] = {"mode": mode, "columns": ("published=sent_at",)}
    left = "SELECT count(*) FROM outbox WHERE sent_at IS NULL"

    def sent() -> bool:
        return shop.conn.execute(left).fetchone() == (0,)

    written = shop.insert(3)
    shop.dies("after the broker", **options)
    assert not sent()
    with shop.relay(**options) as relay:
        wait_for(sent)
        shop.conn.execute("INSERT INTO outbox (aggregate_id, event_type, sent_at) VALUES (1, 'shop.Placed', now())")
        written += shop.insert(2)
        wait_for(sent)
    assert ids(shop.seen()) == written
    advice = dict(relay.told)["leading"]["advice"]  # type: ignore[attr-defined]
    assert advice == 'CREATE INDEX CONCURRENTLY ON public.outbox ("id") WHERE "sent_at" IS NULL'


def test_an_index_by_what_rows_are_ordered_by_is_advised(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop(id="uuid", index=False)
    with shop.relay() as relay:
        wait_for(lambda: relay.progress.leading, "the relay to lead")
    told = dict(relay.told)["leading"]  # type: ignore[attr-defined]
    assert told["advice"] == 'CREATE INDEX CONCURRENTLY ON public.outbox ("created_at", "id") WHERE NOT "published"'
    shop.conn.execute(told["advice"].replace("CONCURRENTLY ", ""))
    with shop.relay() as relay:
        wait_for(lambda: relay.progress.leading, "the relay to lead")
    assert dict(relay.told)["leading"]["advice"] is None  # type: ignore[attr-defined]


def test_a_missing_topic_is_named_or_made(shop: Shop) -> None:
    written = shop.insert()
    assert f"no topic '{shop.topic}'" in shop.fails(create_topics=None)
    with shop.relay():
        shop.await_ticked()
    assert ids(shop.seen()) == written


def test_a_mark_of_something_else_is_a_question(shop: Shop) -> None:
    """The table was dropped and made anew, or the database restored: nothing is sent or left out in silence."""
    shop.insert(3)
    with shop.relay():
        shop.await_ticked()
    shop.conn.execute("ALTER TABLE outbox RENAME TO old; CREATE TABLE outbox (LIKE old INCLUDING ALL)")
    written = shop.insert(2)
    assert "--resume-from table" in shop.fails()
    with shop.relay(resume_from="table"):
        shop.await_ticked()
    assert ids(shop.seen())[3:] == written


@pytest.mark.promise("nothing lost")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_relays_of_one_name_on_two_databases_made_from_one_template(shop: Shop, postgres: Postgres, mode: str) -> None:
    """Server and table are the same by their numbers; ids of the one's last batch must not be ticked off in the other."""
    shop.conn.close()
    name = shop.url.rpartition("/")[2]
    copy = f"{shop.url}_copy"
    postgres.execute(f"CREATE DATABASE {name}_copy TEMPLATE {name}")
    try:
        with psycopg.connect(copy, autocommit=True) as other:
            insert = "INSERT INTO outbox (aggregate_id, event_type, payload) SELECT 1, 'shop.Placed', '{}' FROM generate_series(1, 5)"
            other.execute(insert)
            shop.reconnect()
            shop.insert(5)
            with shop.relay(mode=mode):
                shop.await_ticked()
            said = shop.fails(url=copy, mode=mode, slot=f"tidings_{shop.name}_copy")
            assert "give this one a --name of its own" in said
            assert other.execute("SELECT count(*) FROM outbox WHERE published").fetchone() == (0,)
        with shop.relay(mode=mode):  # and nothing has changed for the first
            shop.insert(1)
            shop.await_ticked()
        assert len(shop.seen()) == 6
    finally:
        postgres.drop_database(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("DROP TABLE outbox", "there is no table outbox; the database has no table"),
        ("ALTER TABLE outbox RENAME TO outbux", "there is no table outbox; did you mean outbux?"),
        ('ALTER TABLE outbox RENAME TO "Outbox"', 'there is no table outbox; did you mean "Outbox"?'),
        ("CREATE SCHEMA app; ALTER TABLE outbox SET SCHEMA app", "there is no table outbox; did you mean app.outbox?"),
        ("ALTER TABLE outbox DROP COLUMN payload", "has no column 'payload' -- it has id, aggregate_id, event_type, created_at, published"),
        ("ALTER TABLE outbox RENAME COLUMN published TO sent", "has no column 'published'"),
        ("ALTER TABLE outbox ALTER published DROP DEFAULT, ALTER published TYPE text", "'published' of public.outbox is text, not boolean"),
        ("ALTER TABLE outbox DROP CONSTRAINT outbox_pkey", "'id' of public.outbox is not unique"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_a_table_that_is_not_an_outbox(shop: Shop, mode: str, change: str, said: str) -> None:
    shop.conn.execute("DROP INDEX IF EXISTS outbox_id_idx")
    shop.conn.execute(change)
    told = shop.fails(mode=mode)
    assert said in told
    assert "\n" not in told


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("mode", ["poll", "cdc"])
def test_a_pooler_is_refused(shop: Shop, pgbouncer: PgBouncer, mode: str) -> None:
    """The lead is a session's, and what it sets would stay with backends that the application gets next."""
    told = shop.fails(url=pgbouncer.url(shop.url), mode=mode)
    assert "through a pooler" in told
    assert "\n" not in told
    with psycopg.connect(pgbouncer.url(shop.url), autocommit=True) as conn:
        assert conn.execute("SHOW idle_session_timeout").fetchone() == ("0",)


def test_a_right_that_is_missing(shop: Shop, postgres: Postgres) -> None:
    role = f"reader_{shop.name}"
    shop.conn.execute(f"CREATE ROLE {role} LOGIN")
    try:
        url = shop.url.replace("tidings@", f"{role}@")
        for said in (
            f'GRANT SELECT ON public.outbox TO "{role}"',
            f'GRANT UPDATE (published) ON public.outbox TO "{role}"',
            f'GRANT USAGE, SELECT ON SEQUENCE outbox_id_seq TO "{role}"',
        ):
            told = shop.fails(url=url)
            assert said in told
            shop.conn.execute(said)
        shop.insert(2)
        with shop.relay(url=url):
            shop.await_ticked()
    finally:
        shop.conn.execute(f"DROP OWNED BY {role}")
        shop.conn.execute(f"DROP ROLE {role}")
