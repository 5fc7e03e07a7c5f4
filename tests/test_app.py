"""The composition root."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from tidings import App, ConfigurationError, Event, HandlerDefinitionError, StoreBusy, StoreError, SubscriptionNameTaken
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "shop.db"}, "store='shop.db': write sqlite:///shop.db"),
        ({"lease": 0.1}, "lease=0.1: seconds, 0.2 or more"),
        ({"retention": 30}, "retention=30: give a timedelta"),
        ({"alarm": 1000}, "alarm=1000: give a Backlog"),
        ({"drain": -1}, "drain=-1: seconds, 0 or more"),
        ({"drain": timedelta(1)}, "seconds, 0 or more"),
        ({"synchronous": "OFF"}, "synchronous='OFF': choose \"FULL\""),
        ({"transactions": "sqlite:///shop.db"}, "transactions='sqlite:///shop.db': give an engine"),
    ],
)
def test_what_an_app_can_not_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App("shop", **{"store": "sqlite:///shop.db", **options})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_what_is_wrong_with_a_handler_is_said_before_anything_runs(tmp_path: Path) -> None:
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")

    @app.subscribe(Asked)
    def handle(event: Asked, limit: timedelta) -> None: ...

    with pytest.raises(HandlerDefinitionError, match=r"asks for timedelta, which nobody provides; call app\.provide\(timedelta, …\)"):
        await app.start()
    assert not (tmp_path / "shop.db").exists()
    app.provide(timedelta, timedelta(1))
    async with app:
        pass


def test_a_store_that_is_closed_says_how_it_is_opened(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"the store is not open; use `async with app:` or app\.open\(\) first"):
        SQLiteStore(f"sqlite:///{tmp_path}/shop.db").write(lambda unit: None)


def names() -> list[str]:
    """Of the tasks that workers run all the time."""
    return sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("tidings-"))


async def test_a_start_that_fails_leaves_nothing_open(tmp_path: Path) -> None:
    shop, mail = (App(name, store=f"sqlite:///{tmp_path}/shop.db") for name in ("shop", "mail"))
    for app in (shop, mail):
        app.subscribe(Asked, name="same")(lambda event: None)
    async with shop:
        threads, tasks = threading.active_count(), names()
        with pytest.raises(SubscriptionNameTaken):
            await mail.start()
        assert names() == tasks
        assert threading.active_count() <= threads
        assert mail.worker is None


async def test_two_apps_of_one_process_on_one_file(tmp_path: Path) -> None:
    shop, mail = (App(name, store=f"sqlite:///{tmp_path}/shop.db") for name in ("shop", "mail"))
    seen: list[int] = []
    heard = asyncio.Event()

    class Heard(Event, key="number", type="shop.Asked"):
        number: int

    @mail.subscribe(Heard)
    async def hear(event: Heard) -> None:
        seen.append(event.number)
        heard.set()

    async with shop, mail:
        await shop.publish(Asked(number=1), tx="own")
        await asyncio.wait_for(heard.wait(), 10)
    assert seen == [1]


@pytest.mark.parametrize("framework", [FastAPI, Starlette])
def test_in_the_lifespan_of_a_web_service(tmp_path: Path, framework: type) -> None:
    """A request's transaction publishes, the worker in the same process handles, and stopping the service drains it."""
    path = tmp_path / "shop.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    shop = App("shop", store=f"sqlite:///{path}", transactions=engine)

    @shop.subscribe(Asked)
    def answer(event: Asked, tx: Session) -> None:
        tx.execute(sqlalchemy.text("INSERT INTO answers VALUES (:number)"), {"number": event.number})

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        async with shop:
            with engine.begin() as conn:
                conn.execute(sqlalchemy.text("CREATE TABLE questions (number INTEGER PRIMARY KEY)"))
                conn.execute(sqlalchemy.text("CREATE TABLE answers (number INTEGER PRIMARY KEY)"))
            yield

    def ask(number: int, session: Session) -> None:
        session.execute(sqlalchemy.text("INSERT INTO questions VALUES (:number)"), {"number": number})
        shop.publish(Asked(number=number), tx=session)

    web: Any
    if framework is FastAPI:
        web = FastAPI(lifespan=lifespan)

        def session() -> Any:
            with Session(engine) as session, session.begin():
                yield session

        def post(number: int, session: Any = Depends(session)) -> dict[str, int]:  # noqa: B008
            ask(number, session)
            return {"asked": number}

        web.post("/ask/{number}")(post)
    else:

        def handle(request: Any) -> JSONResponse:
            with Session(engine) as session, session.begin():
                ask(int(request.path_params["number"]), session)
            return JSONResponse({"asked": int(request.path_params["number"])})

        web = Starlette(lifespan=lifespan, routes=[Route("/ask/{number:int}", handle, methods=["POST"])])

    with TestClient(web, raise_server_exceptions=False) as client:
        for number in range(20):
            assert client.post(f"/ask/{number}").json() == {"asked": number}
        assert client.post("/ask/3").status_code == 500  # the row is there already: no second question, no second event
        portal = client.portal
        assert portal is not None
        for _ in range(1_000):
            with engine.connect() as conn:
                if conn.execute(sqlalchemy.text("SELECT count(*) FROM answers")).scalar() == 20:
                    break
            portal.call(asyncio.sleep, 0.005)
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("SELECT count(*) FROM questions").fetchone() == (20,)
        assert file.execute("SELECT count(*) FROM answers").fetchone() == (20,)
        assert file.execute("SELECT count(*) FROM tidings_log").fetchone() == (20,)
        assert file.execute("SELECT count(*) FROM tidings_workers").fetchone() == (0,)
    engine.dispose()


RUN = """
    import asyncio, sys
    from tidings import App, Event

    class Asked(Event, key="number"):
        number: int

    app = App("shop", store=sys.argv[1])

    @app.subscribe(Asked)
    async def slow(event: Asked) -> None:
        print("began", flush=True)
        await asyncio.sleep(float(sys.argv[2]))
        print("ended", flush=True)

    app.publish(Asked(number=1), tx="own").result()
    app.run()
    print("stopped", flush=True)
"""


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("seconds", "again", "expected"), [("0.3", False, ["ended", "stopped"]), ("60", True, ["stopped"])])
def test_a_signal_drains_and_a_second_one_stops(tmp_path: Path, number: int, seconds: str, again: bool, expected: list[str]) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RUN), f"sqlite:///{tmp_path}/shop.db", seconds]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "began\n"
        os.kill(process.pid, number)
        if again:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            os.kill(process.pid, number)
        out, err = process.communicate(timeout=20)
    assert (out.split(), process.returncode) == (expected, 0), err
    assert "Traceback" not in err


async def test_what_is_opened_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No thread, no descriptor, no task stays behind."""
    app = App("shop", store=f"sqlite:///{tmp_path}/shop.db")
    app.subscribe(Asked, name="a")(lambda event: None)

    async def once() -> None:
        async with app:
            await app.publish(Asked(number=1), tx="own")

    with caplog.at_level(logging.WARNING):
        await once()
        files, tasks = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0, len(asyncio.all_tasks())
        for _ in range(5):
            await once()
    assert len(asyncio.all_tasks()) == tasks
    if files:
        assert len(os.listdir("/proc/self/fd")) <= files
    assert caplog.text == ""
