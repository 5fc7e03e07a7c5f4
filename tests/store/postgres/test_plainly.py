"""What is its own commit: done again if it gave way, and along keys."""

from __future__ import annotations

import threading
from typing import Any

import psycopg
import pytest

from tests.store.postgres.test_trouble import store
from tidings import App, Event, PostgresStore
from tidings.errors import StoreBusy
from tidings.store.sagas import Entry, Hold, Release, Start

__all__ = ["store"]


class Placed(Event, key="order_id"):
    order_id: int


@pytest.mark.promise("bounded")
def test_what_gave_way_to_somebody_else_is_done_again(store: PostgresStore, postgres_url: str) -> None:
    """A lock that somebody has for a while stands for the deadlock: nothing of it was done, and the server says so."""
    tries, again = list[Any](), threading.Event()

    def job(unit: Any) -> Any:
        tries.append(unit)
        if len(tries) == 2:
            again.set()
        return unit._one("SELECT name FROM tidings_meta WHERE name = 'log_id' FOR UPDATE NOWAIT")[0]

    with psycopg.connect(postgres_url) as conn:
        conn.execute("SELECT FROM tidings_meta FOR UPDATE")
        written = store.write_plainly(job)
        assert again.wait(10)
        conn.rollback()
        assert written.result(10) == "log_id"
        conn.execute("SELECT FROM tidings_meta FOR UPDATE")  # and who never gets it is told
        with pytest.raises(StoreBusy):
            store.write_plainly(job).result(20)


def test_it_goes_along_keys_in_new_tables_too(store: PostgresStore, postgres_url: str) -> None:
    """A plan that reads all of a table of a few rows would be kept while it grows."""
    app = App("shop", store=store)

    def write(*parts: Any) -> Any:
        return store.write_plainly(lambda unit: unit.sagas().write_all(*parts)).result(10)

    for begun in range(1, 400, 20):
        keys = range(begun, begun + 20)
        starts = [Start("checkout", 1, "shop", app.envelope(Placed(order_id=key)), 100, "a") for key in keys]
        holds = [Hold("checkout", str(key), "a", 1) for key in keys]
        lines = [(hold, Entry("step", "0", "charge", 1, 1, "done", "1", digest="d")) for hold in holds]
        ends = [Release(hold, "completed", None, None, None, None, 7) for hold in holds]
        assert write(starts, (), ()) == ([True] * 20, [], [])
        assert write((), lines, ends) == ([], [True] * 20, [True] * 20)
    conns = list(store._idle_plain)
    assert conns
    for conn in conns:
        conn.close()
    with psycopg.connect(postgres_url, autocommit=True) as conn:

        def scans() -> Any:
            return conn.execute(
                "SELECT relname, seq_scan, idx_scan FROM pg_stat_user_tables WHERE relname IN ('tidings_sagas', 'tidings_saga_journal')"
            ).fetchall()

        until_told = threading.Event()
        for _ in range(100):
            if any(idx for _, _, idx in scans()):
                break
            until_told.wait(0.1)
        assert all(seq <= 2 for _, seq, _ in scans()), scans()  # the worker's looks are not asked here
