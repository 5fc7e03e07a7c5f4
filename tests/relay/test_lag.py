"""How far behind a foreign outbox is, by the database alone: rows, seconds, leader, slot and who holds readers back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.relay.shops import Shop, wait_for
from tidings.errors import StoreError
from tidings.relay import lag
from tidings.relay.lag import look


@pytest.mark.promise("bounded")
def test_by_polling(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    options = shop.options()
    shop.insert(3)
    shop.conn.execute("UPDATE outbox SET created_at = now() - interval '1 hour' WHERE id = 2")
    found = look(options)
    assert (found.relay, found.table, found.mode) == (options.name, "public.outbox", "poll")
    assert (found.behind, found.exact, found.leader, found.slot, found.horizon) == (3, True, None, None, [])
    assert found.seconds is not None
    assert 3590 < found.seconds < 3700
    monkeypatch.setattr(lag, "MOST", 2)
    assert (look(options).behind, look(options).exact) == (2, False)
    with shop.relay():
        shop.await_ticked()
        found = wait_for(lambda: (one := look(options)).leader is not None and one)
        assert (found.behind, found.seconds) == (0, None)
        row = shop.conn.execute("SELECT application_name FROM pg_stat_activity WHERE pid = %s", (found.leader_pid,)).fetchone()
        assert row == (f"tidings relay {options.name}",)
    wait_for(lambda: look(options).leader is None, "the leader's end")


def test_who_holds_readers_back(shop: Shop) -> None:
    with psycopg.connect(shop.url) as slow:
        shop.insert(1, conn=slow)
        (holder,) = look(shop.options()).horizon
        assert f"process {slow.info.backend_pid} of" in holder.who
        assert holder.seconds is not None
    assert look(shop.options()).horizon == []


def test_by_cdc(new_shop: Callable[..., Shop]) -> None:
    shop = new_shop()
    changes: dict[str, Any] = {"mode": "cdc", "after": "nothing"}
    options = shop.options(**changes)
    with pytest.raises(StoreError, match=r"no replication slot .*: the relay has not run yet"):
        look(options)
    with shop.relay(**changes) as relay:
        wait_for(lambda: relay.progress.leading, "the stream")
        shop.insert(5)
        wait_for(lambda: len(shop.seen()) == 5, "five records")
        found = wait_for(lambda: (one := look(options)).slot is not None and one.slot.streaming and one, "the stream")
        assert (found.behind, found.seconds) == (None, None)
        wait_for(lambda: (slot := look(options).slot) is not None and slot.behind < 10_000, "what is sent to be confirmed")
    shop.insert(1000)
    slot = look(options).slot
    assert slot is not None
    assert not slot.streaming
    assert slot.behind > 50_000
    assert slot.retained >= slot.behind
    assert slot.wal == "reserved"


@pytest.mark.processes
def test_a_leader_that_is_frozen_leads_until_its_lease_is_over(shop: Shop) -> None:
    with shop.process() as relay:
        relay.await_event("leading")
        options = shop.options()
        assert look(options).leader is not None
        relay.signal(signal.SIGSTOP)
        try:
            assert look(options).leader is not None
            wait_for(lambda: look(options).leader is None, "the lease's end")
        finally:
            relay.signal(signal.SIGCONT)
