"""Publishing in a sqlite3 or aiosqlite transaction, and what is no transaction."""

from __future__ import annotations

import gc
import sqlite3
import warnings
from pathlib import Path

import aiosqlite
import pytest

from tidings import App, Event, OutsideTransaction, UnawaitedPublish, UnsupportedTransaction, WrongStore


class Placed(Event, key="order_id"):
    order_id: int


def shop(tmp_path: Path) -> App:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.open()
    return app


def published(app: App) -> list[str | None]:
    return [envelope.key for envelope in app.store.query(lambda unit: unit.select(limit=100))]


@pytest.mark.promise("atomic publish")
def test_sqlite3(tmp_path: Path) -> None:
    app = shop(tmp_path)
    conn = sqlite3.connect(tmp_path / "shop.db")
    app.publish(Placed(order_id=1), tx=conn)
    conn.rollback()
    with conn:
        app.publish(Placed(order_id=2), tx=conn)
    conn.isolation_level = None
    with pytest.raises(OutsideTransaction, match="BEGIN"):
        app.publish(Placed(order_id=3), tx=conn)
    assert published(app) == ["2"]
    conn.close()
    app.close()


def test_no_transaction_and_no_known_one(tmp_path: Path) -> None:
    app = shop(tmp_path)
    with pytest.raises(OutsideTransaction, match='tx="own"'):
        app.publish(Placed(order_id=1))
    with pytest.raises(UnsupportedTransaction, match="object"):
        app.publish(Placed(order_id=1), tx=object())
    memory = sqlite3.connect(":memory:")
    with pytest.raises(WrongStore, match="in memory"):
        app.publish(Placed(order_id=1), tx=memory)
    memory.close()
    assert app.publish(Placed(order_id=5), tx="own").result().position == 1
    app.close()


@pytest.mark.promise("atomic publish")
async def test_aiosqlite(tmp_path: Path) -> None:
    app = shop(tmp_path)
    async with aiosqlite.connect(tmp_path / "shop.db") as conn:
        await app.publish(Placed(order_id=1), tx=conn)
        await conn.rollback()
        await app.publish(Placed(order_id=2), tx=conn)
        await conn.commit()
    assert published(app) == ["2"]
    app.close()


async def test_an_unawaited_publish_does_not_vanish_in_silence(tmp_path: Path) -> None:
    app = shop(tmp_path)
    async with aiosqlite.connect(tmp_path / "shop.db") as conn:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            app.publish(Placed(order_id=1), tx=conn)
            gc.collect()
        assert any("never awaited" in str(warning.message) for warning in told)
        with pytest.raises(UnawaitedPublish, match=r"shop\.Placed"):
            await app.publish(Placed(order_id=2), tx=conn)
    app.close()
