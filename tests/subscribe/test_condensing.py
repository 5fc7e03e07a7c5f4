"""Workers condense the log for searching, when there is time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.running import until
from tidings import App, Envelope, Event
from tidings.store.sqlite import search
from tidings.subscribe import worker


class Ping(Event, key="n"):
    n: int


async def test_a_worker_condenses_full_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CONDENSE_SECONDS", (0.01, 0.01, 0.01))
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db", synchronous="NORMAL")

    @app.subscribe(Ping, start="now")
    async def count(event: Ping) -> None: ...

    app.open()
    rows = [
        Envelope(0, 1, "shop", "shop.Other", 1, "n", str(n), f"e{n}", n, "shop", b"{}", f"e{n}", None, None, None) for n in range(20_000)
    ]
    app.store.write(lambda unit: unit.append(rows)).result()
    async with app:
        await until(lambda: app.store.query(lambda unit: unit.searched_plainly()) < search.BLOCK)
        assert app.store.query(lambda unit: [row.position for row in unit.select(limit=9, key=("n", "123"))]) == [124]
