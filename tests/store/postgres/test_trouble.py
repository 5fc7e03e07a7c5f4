"""The server crashes, connections are cut, workers stand still: each test is something that went wrong once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from servers.postgres import Postgres
from tests.running import settled, until
from tidings import App, Event, PostgresStore, Retry
from tidings.errors import StoreError
from tidings.store.port import Unit, WorkerRow
from tidings.testing.contracts.store import an_event


class Placed(Event, key="order"):
    order: int


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_url)
    store.open()
    yield store
    store.close()


def count(url: str, of: str) -> Any:
    with psycopg.connect(url) as conn:
        row = conn.execute(f"SELECT count(*) FROM {of}".encode()).fetchone()
    assert row is not None
    return row[0]


def cut(url: str, name: str) -> int:
    """End the connections of this name to the database; how many there were."""
    with psycopg.connect(url, autocommit=True) as conn:
        rows = conn.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s", (name,)
        ).fetchall()
    return len(rows)


def read_again(store: PostgresStore, after: int) -> list[Any]:
    """After a crash, of which the first reading hears."""
    with pytest.raises(StoreError):
        store.read(after, 1000)
    return store.read(after, 1000)[0]


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("crash", ["immediate", "kill"])
def test_a_lost_commit_is_not_taken_for_another_transactions(postgres: Postgres, store: PostgresStore, crash: str) -> None:
    """After a crash the server gives out again the ids of transactions of which nothing had reached its disk."""
    times = 0

    def write(unit: Unit) -> str:
        nonlocal times
        times += 1
        positions = unit.append([an_event(1)])
        if times == 1:  # everything is lost before the COMMIT arrives
            if crash == "kill":
                postgres.kill()
                postgres.start()
            else:
                postgres.restart("immediate")
            with psycopg.connect(store.url, autocommit=True) as conn:
                conn.execute("CREATE TABLE busy (n int)")
                for number in range(100):
                    conn.execute("INSERT INTO busy VALUES (%s)", (number,))
        return str(positions)

    store.write(write).result(30)
    assert times == 2
    assert count(store.url, "tidings_log") == 1


@pytest.mark.promise("effects once")
def test_a_commit_whose_answer_is_lost_is_not_done_again(store: PostgresStore) -> None:
    """The connection is cut while the COMMIT waits for a slow trigger: what it was, the server knows when it has ended."""
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("CREATE TABLE done (n int)")
        conn.execute("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END $$")
        conn.execute(
            "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON tidings_log DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    times = 0

    def write(unit: Unit) -> None:
        nonlocal times
        times += 1
        unit.append([an_event(times)])
        if times == 1:
            lost = unit._conn.pgconn  # type: ignore[attr-defined]
            threading.Timer(0.2, lambda: shutdown(lost.socket)).start()

    store.write(write).result(30)
    assert times == 1
    assert count(store.url, "tidings_log") == 1


def shutdown(descriptor: int) -> None:
    """The client's side of a connection goes away; the server notices only when it answers."""
    import socket

    with socket.socket(fileno=descriptor) as one:
        one.shutdown(socket.SHUT_RDWR)
        one.detach()


@pytest.mark.promise("nothing lost")
def test_what_has_been_read_outlives_a_crash_of_the_server(postgres: Postgres, store: PostgresStore) -> None:
    """Its writer did not wait for the disk: gone, its position would be given out again, and the new event taken for the old one."""
    app = App("shop", store=store)
    with psycopg.connect(store.url, autocommit=True) as conn:
        conn.execute("SET synchronous_commit = off")
        with conn.transaction():
            app.publish(Placed(1), tx=conn)
        rows, upto = store.read(0, 1000)
    assert len(rows) == 1
    postgres.kill()
    postgres.start()
    assert count(store.url, "tidings_log") == 1
    app.publish(Placed(2), tx="own").result(10)
    assert len(read_again(store, upto)) == 1, "given out again"


@pytest.mark.promise("nothing lost")
def test_positions_that_were_passed_are_not_given_out_again_after_a_crash(postgres: Postgres, store: PostgresStore) -> None:
    """Positions of a transaction that was rolled back: nothing of it has reached the disk."""
    app = App("shop", store=store)
    with psycopg.connect(store.url) as conn:
        for number in range(40):
            app.publish(Placed(number), tx=conn)
        conn.rollback()
        rows, upto = store.read(0, 1000)
    assert (rows, upto) == ([], 40)
    postgres.kill()
    postgres.start()
    app.publish(Placed(2), tx="own").result(10)
    assert len(read_again(store, upto)) == 1


@pytest.mark.promise("nothing lost")
async def test_the_listening_connection_comes_back(store: PostgresStore) -> None:
    app = App("shop", store=store)
    listening = "pg_stat_activity WHERE application_name = 'tidings listen' AND datname = current_database()"

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None: ...

    async with app:
        await until(lambda: count(store.url, listening) == 1)
        assert cut(store.url, "tidings listen") == 1
        await asyncio.sleep(0.1)
        await until(lambda: count(store.url, listening) == 1)


@pytest.mark.promise("parking")
@pytest.mark.parametrize("how", ["cut", "crash"])
async def test_a_connection_lost_in_a_handler_is_not_its_failure(postgres: Postgres, store: PostgresStore, how: str) -> None:
    """No attempt is counted, and nothing is parked: it is simply run again."""
    app, calls = App("shop", store=store), list[int]()

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def pay(event: Placed, tx: psycopg.Connection) -> None:
        calls.append(event.order)
        if len(calls) == 1:
            if how == "cut":
                cut(store.url, "tidings handler")
            else:
                postgres.restart("immediate")
        tx.execute("SELECT 1")

    @app.subscribe(Placed, retry=Retry(attempts=1))
    async def ship(event: Placed, tx: psycopg.AsyncConnection[Any]) -> None:
        await tx.execute("SELECT 1")

    async with app:
        app.publish(Placed(1), tx="own").result(5)
        await until(lambda: len(calls) == 2)
        await settled(app)
        assert store.query(lambda unit: unit.parked()) == []
        assert store.query(lambda unit: unit.attempts([1])) == []


@pytest.mark.promise("parking")
@pytest.mark.parametrize("chained", [False, True], ids=["itself", "as the cause"])
async def test_a_gateway_that_hangs_up_is_the_handlers_failure(store: PostgresStore, chained: bool) -> None:
    """Not the store's: it counts, and the key is parked."""
    app = App("shop", store=store)

    def hang_up() -> None:
        if not chained:
            raise ConnectionResetError("the gateway hung up")
        try:
            raise ConnectionRefusedError("nobody is there")
        except ConnectionRefusedError as error:
            raise OSError("no gateway") from error

    @app.subscribe(Placed, retry=Retry(attempts=1))
    def pay(event: Placed, tx: psycopg.Connection) -> None:
        hang_up()

    @app.subscribe(Placed, retry=Retry(attempts=1))
    async def ship(event: Placed, tx: psycopg.AsyncConnection[Any]) -> None:
        hang_up()

    async with app:
        app.publish(Placed(1), tx="own").result(5)
        await until(lambda: len(store.query(lambda unit: unit.parked(states=["dead"]))) == 2)


@pytest.mark.promise("death at any instruction")
def test_a_writer_that_stands_still_in_its_transaction_holds_up_nobody_for_long(store: PostgresStore) -> None:
    """As a frozen process does: its locks, on a lane or on the log, are given up when its lease is over."""
    store.transactions(None, 0.3)
    other = PostgresStore(store.url)
    other.open()
    go_on, frozen = threading.Event(), threading.Event()
    store.write(lambda unit: unit.register("mail", "shop", ["shop.Placed"], "key", 0, 1)).result(5)
    times = 0

    def freeze(unit: Unit) -> None:
        nonlocal times
        times += 1
        unit.append([an_event(times)])
        unit.rewind("mail", 0)
        if times == 1:
            frozen.set()
            go_on.wait(20)

    try:
        standing = store.write(freeze)
        assert frozen.wait(5)
        began = time.monotonic()
        other.write(lambda unit: unit.rewind("mail", 0)).result(10)
        assert time.monotonic() - began < 2
        go_on.set()
        standing.result(10)
        assert count(store.url, "tidings_log") == 1
    finally:
        go_on.set()
        other.close()


@pytest.mark.promise("parking")
async def test_a_key_whose_promotion_could_not_be_written_is_not_forgotten(store: PostgresStore) -> None:
    """Its head was dropped by an operator while the server was away: the event behind it runs when it is back."""
    app, seen = App("shop", store=store), list[int]()
    write, down = store.write, threading.Event()

    @app.subscribe(Placed, on_dead="hold", retry=Retry(attempts=1))
    async def pay(event: Placed) -> None:
        if not seen:
            seen.append(0)
            raise ValueError("declined")
        seen.append(event.order)

    def refused(job: Any, after: Any = None) -> Any:
        if down.is_set():
            down.clear()
            return write(fail)
        return write(job, after)

    def fail(unit: Unit) -> None:
        raise StoreError("the server is away")

    async with app:
        for _ in range(2):
            app.publish(Placed(1), tx="own").result(5)
        await until(lambda: len(store.query(lambda unit: unit.parked())) == 2)
        await settled(app)
        runner = app.worker.runners["pay"]  # type: ignore[union-attr]
        store.write = refused  # type: ignore[method-assign]
        promote = runner.parked._promote

        def promoting(*args: Any) -> None:
            down.set()
            runner.parked._promote = promote  # type: ignore[method-assign]
            promote(*args)

        runner.parked._promote = promoting  # type: ignore[method-assign]
        write(lambda unit: unit.drop_dead("pay", 1, 1)).result(5)
        await until(lambda: seen == [0, 1])


def worker(name: str) -> WorkerRow:
    return WorkerRow(name, "shop", "here", 1, 1, ("mail",), True, 0.0, {})


@pytest.fixture
def expired(store: PostgresStore) -> Iterator[PostgresStore]:
    """Another process's store, on which the lease of ``slow``, which has all lanes, is over."""
    other = PostgresStore(store.url)
    other.open()

    def begin(unit: Unit) -> None:
        unit.register("mail", "shop", ["shop.Placed"], "key", 0, 1)
        unit.enrol(worker("slow"), time.monotonic() + 0.1)
        unit.enrol(worker("next"), time.monotonic() + 60)
        assert len(unit.claim("mail", "slow", 1, 1)) == 64

    store.write(begin).result(5)
    time.sleep(0.2)
    yield other
    other.close()


@pytest.mark.promise("order per key")
def test_a_lease_that_is_being_renewed_is_not_taken_for_one_that_is_over(store: PostgresStore, expired: PostgresStore) -> None:
    renewed = threading.Event()

    def renew(unit: Unit) -> None:
        assert unit.renew("slow", time.monotonic() + 60, {})
        renewed.set()
        time.sleep(0.3)

    renewing = expired.write(renew)
    assert renewed.wait(5)
    assert store.write(lambda unit: unit.claim("mail", "next", 1, 1)).result(5) == []
    renewing.result(5)


@pytest.mark.promise("order per key")
def test_whoever_has_renewed_a_lease_sees_what_was_taken_before(store: PostgresStore, expired: PostgresStore) -> None:
    """Otherwise two would handle the same events side by side: each sees the lanes as his."""
    claimed = threading.Event()

    def claim(unit: Unit) -> None:
        assert len(unit.claim("mail", "next", 1, 1)) == 64
        claimed.set()
        time.sleep(0.3)

    claiming = expired.write(claim)
    assert claimed.wait(5)
    store.write(lambda unit: unit.renew("slow", time.monotonic() + 60, {})).result(5)
    assert {lane.worker for lane in store.query(lambda unit: unit.lanes("mail"))} == {"next"}
    claiming.result(5)


def test_who_reads_while_the_store_is_closed_leaves_no_connection(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.open()
    store.query(lambda unit: store.close())
    assert store._idle == []
    with pytest.raises(StoreError):
        PostgresStore(postgres_url.rpartition("/")[0] + "/nothing").open_to_read()


def test_a_connection_that_is_lost_while_a_store_is_opened_is_told_in_our_words(postgres_url: str) -> None:
    """And nothing is left of it: neither a thread nor a connection."""
    first = PostgresStore(postgres_url)
    first.open()
    first.close()
    done, told = threading.Event(), list[str]()

    def cut() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            while not done.is_set():
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND application_name LIKE 'tidings%'"
                )

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        until = time.monotonic() + 20
        while len(told) < 40 and time.monotonic() < until:
            store = PostgresStore(postgres_url)
            try:
                store.open()
            except StoreError as error:
                told.append(str(error))
                assert (store._opened, store._writer, store._notifier, store._idle) == (0, None, None, [])
            else:
                store.close()
    finally:
        done.set()
        cutting.join()
    assert len(told) > 5
