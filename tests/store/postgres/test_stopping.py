"""Ending while the server is away: nobody hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.running import until
from tests.store.postgres.proxy import Proxy
from tidings import App, Event
from tidings.errors import StoreFailed
from tidings.subscribe.worker import LEAVE_SECONDS


class Placed(Event, key="order_id"):
    order_id: int


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(urlsplit(postgres_url).port or 0)
    yield made
    made.close()


@pytest.mark.promise("nothing lost")
async def test_a_worker_ends_though_a_commit_was_never_answered(postgres_url: str, proxy: Proxy) -> None:
    """The writer asks what became of it until the server is back. Who ends doesn't wait for that, and says that nobody knows."""
    app = App("shop", store=postgres_url.replace(f":{urlsplit(postgres_url).port}/", f":{proxy.port}/"))

    @app.subscribe(Placed)
    async def pay(event: Placed) -> None: ...

    await app.start()
    proxy.cut, proxy.last, proxy.behind = "after", True, b"INSERT INTO tidings_log"
    publishing = app.publish(Placed(1), tx="own")
    await until(lambda: proxy.cuts == 1)
    proxy.go_down()
    await until(lambda: proxy.refused > 0)
    began = time.monotonic()
    async with asyncio.timeout(LEAVE_SECONDS + 15):
        await app.stop()
    assert time.monotonic() - began < LEAVE_SECONDS + 10
    with pytest.raises(StoreFailed, match="nobody knows whether it was done"):
        await publishing
