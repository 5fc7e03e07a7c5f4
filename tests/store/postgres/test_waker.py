from __future__ import annotations

import asyncio
import time

import psycopg
import pytest

from servers.pgbouncer import PgBouncer
from tests.running import until
from tidings import App, Event, PostgresStore
from tidings.store.postgres import waker as waker_module
from tidings.testing.contracts.store import an_event


class Placed(Event, key="order"):
    order: int


async def woken(url: str, act: object, listen: str | None = None) -> float:
    """Seconds until a waker of another store has called."""
    watching, acting = PostgresStore(url, listen=listen), PostgresStore(url)
    watching.open()
    acting.open()
    calls: list[float] = []
    waker = watching.watch(lambda: calls.append(time.monotonic()))
    try:
        waker.arm()
        await asyncio.sleep(0.3)  # the listening connection is there
        await until(lambda: bool(calls))
        calls.clear()
        waker.arm()
        began = time.monotonic()
        await asyncio.to_thread(act, acting)  # type: ignore[arg-type]
        await until(lambda: bool(calls), 5)
        return calls[0] - began
    finally:
        waker.close()
        watching.close()
        acting.close()


async def test_a_publish_of_another_process_is_heard_of(postgres_url: str) -> None:
    def act(store: PostgresStore) -> None:
        store.write(lambda unit: unit.append([an_event(1)])).result(10)

    assert await woken(postgres_url, act) < 1.0


async def test_behind_a_pooler_a_direct_connection_listens_and_without_one_it_is_polled(postgres_url: str, pgbouncer: PgBouncer) -> None:
    def act(store: PostgresStore) -> None:
        store.write(lambda unit: unit.append([an_event(1)])).result(10)

    assert await woken(pgbouncer.url(postgres_url), act, listen=postgres_url) < 0.4
    assert await woken(pgbouncer.url(postgres_url), act) < 1.5
    with psycopg.connect(postgres_url) as conn:  # no LISTEN was left with a backend that others get
        listening = conn.execute("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%' AND datname = current_database()")
        assert listening.fetchone() == (0,)


async def test_what_readers_need_not_know_wakes_nobody(postgres_url: str) -> None:
    watching, acting = PostgresStore(postgres_url), PostgresStore(postgres_url)
    watching.open()
    acting.open()
    calls: list[int] = []
    waker = watching.watch(lambda: calls.append(1))
    try:
        waker.arm()
        await asyncio.sleep(0.4)  # the listening connection is there, and whoever arms next is told to look once
        waker.arm()
        calls.clear()
        waker.arm()
        await asyncio.to_thread(lambda: acting.write(lambda unit: unit.set_held("nobody", None, 0)).result(10))
        await asyncio.sleep(0.4)
        assert calls == []
    finally:
        waker.close()
        watching.close()
        acting.close()


async def test_a_look_that_is_only_a_precaution_is_told_from_one_that_may_find_something(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waker_module, "POLL_SECONDS", (0.3, 0.1))
    store = PostgresStore(postgres_url)
    store.open()
    calls: list[bool] = []

    def woken() -> None:
        calls.append(waker.precaution)
        waker.arm()

    waker = store.watch(woken)
    try:
        waker.arm()
        await until(lambda: len(calls) > 3)
        assert calls[0] is False  # what was said before anybody listened
        await until(lambda: calls[-2:] == [True, True])
        waker.hint()
        calls.clear()
        await until(lambda: len(calls) > 2)
        assert not any(calls)  # somebody publishes here, and his commit may tell nobody
    finally:
        waker.close()
        store.close()


async def test_a_publish_that_commits_later_is_handled_at_once(postgres_url: str) -> None:
    """The hint comes when the event is written, and its commit tells nobody: the reader looks again and again for a while."""
    app = App("shop", store=postgres_url)
    seen: list[float] = []

    @app.subscribe(Placed)
    async def note(event: Placed) -> None:
        seen.append(time.monotonic())

    async with app:
        await asyncio.sleep(0.3)
        with psycopg.connect(postgres_url) as conn:
            app.publish(Placed(order=1), tx=conn)
            await asyncio.sleep(0.4)
            assert seen == []
            conn.commit()
            committed = time.monotonic()
        await until(lambda: bool(seen))
    assert seen[0] - committed < 1.0


async def test_the_listening_connection_is_made_again(postgres_url: str) -> None:
    app = App("shop", store=postgres_url)
    seen: list[int] = []

    @app.subscribe(Placed)
    async def note(event: Placed) -> None:
        seen.append(event.order)

    async with app:
        await asyncio.sleep(0.3)
        with psycopg.connect(postgres_url, autocommit=True) as conn:
            conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'tidings listen'")
            app.publish(Placed(order=1), tx="own").result(10)
            await until(lambda: seen == [1])
            listening = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tidings listen' AND datname = current_database()"
            await until(lambda: conn.execute(listening.encode()).fetchone() == (1,))


async def test_what_this_process_has_committed_is_told_to_others_only(postgres_url: str) -> None:
    """Its own readers hear of it at once, from the writer. What it has yet to commit they are told of, and look again and again."""
    store, other = PostgresStore(postgres_url), PostgresStore(postgres_url)
    store.open()
    other.open()
    own: list[float] = []
    others: list[float] = []
    wakers = [store.watch(lambda: own.append(time.monotonic())), other.watch(lambda: others.append(time.monotonic()))]
    try:
        for waker in wakers:
            waker.arm()
        await until(lambda: bool(own and others))
        await asyncio.sleep(0.3)  # the listening connections are there, and what they look for at first is over

        def arm() -> None:
            own.clear()
            others.clear()
            for waker in wakers:
                waker.arm()

        arm()
        await asyncio.sleep(0.2)
        arm()
        await asyncio.to_thread(lambda: store.write(lambda unit: unit.append([an_event(1)])).result(10))
        await until(lambda: bool(others))
        await asyncio.sleep(0.1)
        assert own == []
        await asyncio.sleep(0.2)
        arm()
        store.hint()
        await until(lambda: bool(own and others))
    finally:
        for waker in wakers:
            waker.close()
        store.close()
        other.close()
