"""The composition root."""

from __future__ import annotations

import inspect
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tidings import App, Event, StoreBusy
from tidings.store.sqlite import SQLiteStore
from tidings.subscribe.subscription import Given


class Asked(Event, key="number"):
    number: int


def test_a_first_publish_whose_own_transaction_is_in_the_way_of_the_tables_says_so(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    app = App("shop", store=SQLiteStore(f"sqlite:///{path}", busy=0.1))
    with closing(sqlite3.connect(path)) as conn:
        conn.execute("CREATE TABLE mine (number INTEGER)")
        conn.execute("INSERT INTO mine VALUES (1)")
        with pytest.raises(StoreBusy, match=r"call app\.open\(\) once"):
            app.publish(Asked(number=1), tx=conn)
        conn.rollback()
        app.open()
        with conn:
            conn.execute("INSERT INTO mine VALUES (1)")
            assert app.publish(Asked(number=1), tx=conn).position == 1
    app.close()


def test_type_checkers_know_every_option() -> None:
    assert set(Given.__annotations__) == set(inspect.signature(App.subscription).parameters) - {"self", "name"}
