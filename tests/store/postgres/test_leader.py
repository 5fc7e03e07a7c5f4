"""One leader of each name: while its session lives, and no longer than its lease if it says nothing."""

from __future__ import annotations

import psycopg
import pytest

from tests.relay.shops import wait_for
from tidings.store.postgres.leader import Leader


@pytest.mark.promise("death at any instruction")
def test_who_says_nothing_for_its_lease_leads_no_more(postgres_url: str) -> None:
    first, second, other = (Leader(postgres_url, name, lease=0.5) for name in ("a", "a", "b"))
    try:
        assert first.lead()
        assert other.lead()
        assert not second.lead()
        wait_for(second.lead, "the lead", 20)
        with pytest.raises(psycopg.OperationalError):
            first.conn.execute("SELECT")
    finally:
        for one in (first, second, other):
            one.close()


def test_who_speaks_keeps_it(postgres_url: str) -> None:
    first, second = (Leader(postgres_url, "a", lease=1.0) for _ in range(2))
    try:
        assert first.lead()
        asked = 0

        def later() -> bool:
            nonlocal asked
            asked += 1
            first.speak()
            assert not second.lead()
            row = second.conn.execute(
                "SELECT clock_timestamp() - backend_start > '2.5 s' FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()
            return row is not None and bool(row[0])

        wait_for(later, "two leases to pass", 20)
        assert asked > 2
        first.close()
        wait_for(second.lead, "the lead", 20)
    finally:
        first.close()
        second.close()
