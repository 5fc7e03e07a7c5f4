"""Publishing in a transaction of every driver: the event exists if and only if the transaction commits."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session, sessionmaker

from tidings import (
    App,
    Event,
    InvalidEvent,
    OutsideTransaction,
    Receipt,
    UnawaitedPublish,
    UnsupportedTransaction,
    WrongStore,
)

pytestmark = pytest.mark.promise("atomic publish")


class Placed(Event, key="order"):
    order: int


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[int]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "shop.db")


@pytest.fixture
def app(path: str) -> Iterator[App]:
    app = App("shop", store=f"sqlite:///{path}")
    app.open()
    with sqlite3.connect(path) as conn:
        conn.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, total INTEGER NOT NULL)")
    conn.close()
    yield app
    app.close()


@pytest.fixture
def engine(app: App, path: str) -> Iterator[Engine]:
    engine = create_engine(f"sqlite:///{path}")
    yield engine
    engine.dispose()


@pytest.fixture
async def async_engine(app: App, path: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    yield engine
    await engine.dispose()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[str]:
    """The file of another app's store."""
    app = App("mail", store=f"sqlite:///{tmp_path}/mail.db")
    app.open()
    yield str(tmp_path / "mail.db")
    app.close()


def keys(app: App) -> list[str | None]:
    return [envelope.key for envelope in app.store.query(lambda unit: unit.select(limit=1000))]


def orders(path: str) -> list[int]:
    conn = sqlite3.connect(path)
    try:
        return [row[0] for row in conn.execute("SELECT id FROM orders ORDER BY id")]
    finally:
        conn.close()


INSERT = "INSERT INTO orders (id, total) VALUES (1, 10)"

# -- sqlite3


def modes() -> list[Any]:
    found: list[Any] = [
        pytest.param({}, None, id="legacy"),
        pytest.param({"isolation_level": "IMMEDIATE"}, None, id="immediate"),
        pytest.param({"isolation_level": None}, "BEGIN", id="autocommit, BEGIN by hand"),
    ]
    if sys.version_info >= (3, 12):
        found += [
            pytest.param({"autocommit": False}, None, id="autocommit=False"),
            pytest.param({"autocommit": True}, "BEGIN", id="autocommit=True, BEGIN by hand"),
        ]
    return found


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("first", ["event", "row"])
@pytest.mark.parametrize(("options", "begin"), modes())
def test_sqlite3(app: App, path: str, options: dict[str, Any], begin: str | None, first: str, commits: bool) -> None:
    conn = sqlite3.connect(path, **options)
    try:
        if begin is not None:
            conn.execute(begin)
        if first == "row":
            conn.execute(INSERT)
        receipt = app.publish(Placed(order=1), tx=conn)
        if first == "event":
            conn.execute(INSERT)
        assert (receipt.position, len(receipt.event_id)) == (1, 36)
        assert keys(app) == []  # nobody else sees it before the commit
        if begin is not None:
            conn.execute("COMMIT" if commits else "ROLLBACK")
        elif commits:
            conn.commit()
        else:
            conn.rollback()
        assert keys(app) == (["1"] if commits else [])
        assert orders(path) == ([1] if commits else [])
    finally:
        conn.close()


def test_sqlite3_as_a_context_manager(app: App, path: str) -> None:
    conn = sqlite3.connect(path)
    try:
        with conn:
            app.publish(Placed(order=1), tx=conn)
        with pytest.raises(ZeroDivisionError), conn:
            app.publish(Placed(order=2), tx=conn)
            1 / 0
        assert keys(app) == ["1"]
    finally:
        conn.close()


def test_a_savepoint_that_is_undone_takes_its_events_with_it(app: App, path: str) -> None:
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        conn.execute("BEGIN")
        app.publish(Placed(order=1), tx=conn)
        conn.execute("SAVEPOINT part")
        app.publish(Placed(order=2), tx=conn)
        conn.execute("ROLLBACK TO part")
        app.publish(Placed(order=3), tx=conn)
        conn.execute("COMMIT")
        assert keys(app) == ["1", "3"]
    finally:
        conn.close()


@pytest.mark.parametrize("options", [{"isolation_level": None}, *([{"autocommit": True}] if sys.version_info >= (3, 12) else [])])
def test_sqlite3_outside_a_transaction(app: App, path: str, options: dict[str, Any]) -> None:
    conn = sqlite3.connect(path, **options)
    try:
        with pytest.raises(OutsideTransaction, match='execute BEGIN first, or publish with tx="own"'):
            app.publish(Placed(order=1), tx=conn)
        assert keys(app) == []
    finally:
        conn.close()


def test_a_connection_of_an_own_class(app: App, path: str) -> None:
    class Own(sqlite3.Connection):
        pass

    conn = sqlite3.connect(path, factory=Own)
    try:
        with conn:
            app.publish(Placed(order=1), tx=conn)
        assert keys(app) == ["1"]
    finally:
        conn.close()


def as_mapping(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def test_rows_as_mappings_do_not_disturb(app: App, path: str) -> None:
    conn = sqlite3.connect(path)
    conn.row_factory = as_mapping
    conn.text_factory = bytes
    try:
        with conn:
            app.publish(Placed(order=1), tx=conn)
            app.publish(Placed(order=2), tx=conn, after=timedelta(hours=1))
        assert keys(app) == ["1"]
        assert len(app.scheduled()) == 1
    finally:
        conn.close()


def test_a_scheduled_event_is_the_transactions_as_well(app: App, path: str) -> None:
    conn = sqlite3.connect(path)
    try:
        receipt = app.publish(Placed(order=1), tx=conn, after=timedelta(hours=1))
        assert receipt.position is None
        conn.rollback()
        assert app.scheduled() == []
        with conn:
            app.publish(Placed(order=1), tx=conn, after=timedelta(hours=1))
        assert [scheduled.envelope.key for scheduled in app.scheduled()] == ["1"]
    finally:
        conn.close()


# -- aiosqlite


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("level", ["", None])
async def test_aiosqlite(app: App, path: str, level: str | None, commits: bool) -> None:
    async with aiosqlite.connect(path, isolation_level=level) as conn:
        if level is None:
            with pytest.raises(OutsideTransaction):
                await app.publish(Placed(order=1), tx=conn)
            await conn.execute("BEGIN")
        await conn.execute(INSERT)
        receipt = await app.publish(Placed(order=1), tx=conn)
        assert receipt.position == 1
        assert keys(app) == []
        await (conn.commit() if commits else conn.rollback())
        assert keys(app) == (["1"] if commits else [])
        assert orders(path) == ([1] if commits else [])


# -- SQLAlchemy


@pytest.mark.parametrize("commits", [True, False])
def test_connection(app: App, path: str, engine: Engine, commits: bool) -> None:
    with engine.connect() as conn:
        app.publish(Placed(order=1), tx=conn)
        conn.execute(text(INSERT))
        assert keys(app) == []
        if commits:
            conn.commit()
        else:
            conn.rollback()
    assert keys(app) == (["1"] if commits else [])
    assert orders(path) == ([1] if commits else [])


def test_connection_in_begin(app: App, path: str, engine: Engine) -> None:
    with engine.begin() as conn:
        conn.execute(text(INSERT))
        app.publish(Placed(order=1), tx=conn)
    with pytest.raises(ZeroDivisionError), engine.begin() as conn:
        app.publish(Placed(order=2), tx=conn)
        1 / 0
    assert keys(app) == ["1"]


def test_publishing_first_begins_the_connections_transaction(app: App, engine: Engine) -> None:
    """As any other statement does; leaving the block without a commit rolls back."""
    with engine.connect() as conn:
        app.publish(Placed(order=1), tx=conn)
        assert conn.in_transaction()
    assert keys(app) == []


@pytest.mark.parametrize("autoflush", [True, False])
@pytest.mark.parametrize("commits", [True, False])
def test_session(app: App, path: str, engine: Engine, commits: bool, autoflush: bool) -> None:
    """The pending row is flushed first, whatever the session's settings: its INSERT, and its lock, come before the event."""
    with Session(engine, autoflush=autoflush) as session:
        session.add(Order(id=1, total=10))
        receipt = app.publish(Placed(order=1), tx=session)
        assert receipt.position == 1
        assert not session.new
        if commits:
            session.commit()
        else:
            session.rollback()
    assert keys(app) == (["1"] if commits else [])
    assert orders(path) == ([1] if commits else [])


@pytest.mark.parametrize("autoflush", [True, False])
def test_session_statements_stand_before_the_event(app: App, engine: Engine, autoflush: bool) -> None:
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda conn, cursor, statement, *rest: statements.append(statement))
    with Session(engine, autoflush=autoflush) as session, session.begin():
        order = Order(total=10)
        session.add(order)
        session.flush()
        order.total = 20
        app.publish(Placed(order=order.id), tx=session)
        assert [statement.split()[0] for statement in statements] == ["INSERT", "UPDATE"]
    assert keys(app) == ["1"]


def test_a_key_that_the_database_has_not_given_yet(app: App, engine: Engine) -> None:
    class Unkeyed(Event, key="order", type="shop.Placed"):
        order: int | None

    with Session(engine) as session:
        order = Order(total=10)
        session.add(order)
        with pytest.raises(InvalidEvent, match="flush first, so that the database has given the row its id"):
            app.publish(Unkeyed(order=order.id), tx=session)


def test_nested_transactions(app: App, engine: Engine) -> None:
    with Session(engine) as session, session.begin():
        app.publish(Placed(order=1), tx=session)
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            app.publish(Placed(order=2), tx=session)
            1 / 0
        with session.begin_nested():
            app.publish(Placed(order=3), tx=session)
    assert keys(app) == ["1", "3"]


@pytest.mark.parametrize("commits", [True, False])
async def test_async_connection(app: App, path: str, async_engine: AsyncEngine, commits: bool) -> None:
    async with async_engine.connect() as conn:
        await conn.execute(text(INSERT))
        receipt = await app.publish(Placed(order=1), tx=conn)
        assert receipt.position == 1
        assert keys(app) == []
        await (conn.commit() if commits else conn.rollback())
    assert keys(app) == (["1"] if commits else [])
    assert orders(path) == ([1] if commits else [])


@pytest.mark.parametrize("autoflush", [True, False])
@pytest.mark.parametrize("commits", [True, False])
async def test_async_session(app: App, path: str, async_engine: AsyncEngine, commits: bool, autoflush: bool) -> None:
    async with AsyncSession(async_engine, autoflush=autoflush) as session:
        session.add(Order(id=1, total=10))
        receipt = await app.publish(Placed(order=1), tx=session)
        assert receipt.position == 1
        assert not session.new
        assert keys(app) == []
        await (session.commit() if commits else session.rollback())
    assert keys(app) == (["1"] if commits else [])
    assert orders(path) == ([1] if commits else [])


async def test_the_synchronous_twin_inside_run_sync(app: App, async_engine: AsyncEngine) -> None:
    async with AsyncSession(async_engine) as session:
        await session.run_sync(lambda inner: app.publish(Placed(order=1), tx=inner))
        assert keys(app) == []
        await session.commit()
    assert keys(app) == ["1"]


@pytest.mark.parametrize("kind", ["session", "connection"])
def test_sqlalchemy_in_autocommit(app: App, engine: Engine, kind: str) -> None:
    auto = engine.execution_options(isolation_level="AUTOCOMMIT")
    with Session(auto) if kind == "session" else auto.connect() as tx:
        with pytest.raises(OutsideTransaction):
            app.publish(Placed(order=1), tx=tx)
    assert keys(app) == []


# -- an await that was forgotten


async def forget(app: App, tx: Any) -> None:
    """As a user writes it by mistake; the warning is a second one, for those who never commit."""
    with pytest.warns(RuntimeWarning, match=r"publish\(shop.Placed\) was never awaited: the event was NOT published"):
        app.publish(Placed(order=1), tx=tx)  # CPython tells at once: nothing refers to what it returned


@pytest.mark.parametrize("holds", [True, False])
@pytest.mark.parametrize("kind", [AsyncSession, AsyncConnection])
async def test_sqlalchemy_refuses_to_commit(app: App, path: str, async_engine: AsyncEngine, kind: type, holds: bool) -> None:
    """Even when the result is still held in a variable, so that no warning was given yet."""
    async with AsyncSession(async_engine) if kind is AsyncSession else async_engine.connect() as tx:
        await tx.execute(text(INSERT))
        await app.publish(Placed(order=0), tx=tx)
        held: Any = None
        if holds:
            held = app.publish(Placed(order=1), tx=tx)
        else:
            await forget(app, tx)
        with pytest.raises(UnawaitedPublish, match=r"not published: shop.Placed. Write `await app.publish\(…\)`"):
            await tx.commit()
        await tx.rollback()
        assert keys(app) == []
        assert orders(path) == []
        # Told once: the transaction can be done again, and it is not told again at the next publish.
        await tx.execute(text(INSERT))
        await app.publish(Placed(order=2), tx=tx)
        await tx.commit()
        del held
    assert keys(app) == ["2"]
    assert orders(path) == [1]


async def test_aiosqlite_cannot_refuse_so_the_next_publish_does(app: App, path: str) -> None:
    async with aiosqlite.connect(path) as conn:
        await conn.execute(INSERT)
        await forget(app, conn)
        await conn.commit()
        with pytest.raises(UnawaitedPublish, match=r"not published: shop\.Placed"):
            await app.publish(Placed(order=2), tx=conn)
        await app.publish(Placed(order=3), tx=conn)
        await conn.commit()
    assert keys(app) == ["3"]


async def test_forgetting_again_is_told_again(app: App, path: str) -> None:
    async with aiosqlite.connect(path) as conn:
        for _ in range(2):
            await forget(app, conn)
            with pytest.raises(UnawaitedPublish):
                app.publish(Placed(order=2), tx="own")


async def test_one_publish_is_one_event(app: App, path: str) -> None:
    async with aiosqlite.connect(path) as conn:
        publish = app.publish(Placed(order=1), tx=conn)
        await publish
        with pytest.raises(UnawaitedPublish, match="awaited already"):
            await publish
        await conn.commit()
    assert keys(app) == ["1"]


# -- the wrong thing


async def test_another_stores_transaction(app: App, other: str) -> None:
    async def refuse(tx: Any) -> None:
        with pytest.raises(WrongStore, match=r"mail\.db, but the app's store is .*shop\.db: .* Open your connection on the store's file"):
            result = app.publish(Placed(order=1), tx=tx)
            if not isinstance(result, Receipt):
                await result
        with pytest.raises(WrongStore):
            result = app.publish(Placed(order=1), tx=tx, after=timedelta(hours=1))
            if not isinstance(result, Receipt):
                await result

    conn = sqlite3.connect(other)
    await refuse(conn)
    conn.close()
    engine, async_engine = create_engine(f"sqlite:///{other}"), create_async_engine(f"sqlite+aiosqlite:///{other}")
    with Session(engine) as session:
        await refuse(session)
    with engine.connect() as connection:
        await refuse(connection)
    async with AsyncSession(async_engine) as async_session:
        await refuse(async_session)
    async with async_engine.connect() as async_connection:
        await refuse(async_connection)
    async with aiosqlite.connect(other) as aio:
        await refuse(aio)
    engine.dispose()
    await async_engine.dispose()
    assert keys(app) == []


def test_a_database_without_a_store(app: App) -> None:
    conn = sqlite3.connect(":memory:")
    with pytest.raises(WrongStore, match="a database in memory, but the app's store is"):
        app.publish(Placed(order=1), tx=conn)
    conn.close()


def test_an_attached_copy_is_not_the_store(app: App, path: str, other: str) -> None:
    conn = sqlite3.connect(other)
    conn.execute("ATTACH ? AS shop", (path,))
    with pytest.raises(WrongStore):
        app.publish(Placed(order=1), tx=conn)
    conn.close()


def test_a_scoped_session(app: App, path: str) -> None:
    engine = create_engine(f"sqlite:///{path}")
    session = scoped_session(sessionmaker(engine))
    app.publish(Placed(order=1), tx=session)
    session.rollback()
    app.publish(Placed(order=2), tx=session)
    session.commit()
    session.remove()
    engine.dispose()
    assert [row.key for row in app.store.query(lambda unit: unit.select(limit=10))] == ["2"]


ENGINE, ASYNC_ENGINE = create_engine("sqlite://"), create_async_engine("sqlite+aiosqlite://")


@pytest.mark.parametrize(
    "tx",
    [object(), 1, "mine", b"own", [], sqlite3, ENGINE, ASYNC_ENGINE, sessionmaker(ENGINE), async_sessionmaker(ASYNC_ENGINE)],
    ids=lambda tx: type(tx).__name__,
)
def test_what_is_no_transaction(app: App, tx: Any) -> None:
    with pytest.raises((UnsupportedTransaction, OutsideTransaction), match=r"tx="):
        app.publish(Placed(order=1), tx=tx)


def test_no_transaction_at_all(app: App) -> None:
    with pytest.raises(OutsideTransaction, match=r'app\.publish\(event, tx=session\).* app\.publish\(event, tx="own"\)'):
        app.publish(Placed(order=1))


def test_sqlalchemy_on_another_database(app: App) -> None:
    class Dialect:
        name = "postgresql"

    class Postgres(Connection):
        dialect = Dialect()  # type: ignore[assignment]

        def __init__(self) -> None:
            pass

        def in_transaction(self) -> bool:
            return True

        def __del__(self) -> None:
            pass

    with pytest.raises(UnsupportedTransaction, match="the session is on postgresql, the store on SQLite"):
        app.publish(Placed(order=1), tx=Postgres())


# -- what is imported


@pytest.mark.parametrize(
    ("own", "absent"),
    [
        ("", "sqlalchemy aiosqlite django pydantic attrs attr asyncpg psycopg"),
        ("aiosqlite", "sqlalchemy django pydantic"),
        ("sqlalchemy", "aiosqlite django pydantic sqlalchemy.orm sqlalchemy.ext.asyncio"),
    ],
)
def test_only_drivers_that_the_user_has_are_imported(own: str, absent: str, tmp_path: Path) -> None:
    script = f"""
        import asyncio, sqlite3, sys
        {"import " + own if own else ""}
        from tidings import App, Event

        class Placed(Event, key="order"):
            order: int

        app = App("shop", store="sqlite:///{tmp_path}/shop.db")

        @app.subscribe(Placed)
        def handle(event: Placed, tx: sqlite3.Connection) -> None:
            pass

        async def main():
            async with app:
                conn = sqlite3.connect("{tmp_path}/shop.db")
                with conn:
                    app.publish(Placed(order=1), tx=conn)
                conn.close()
                while app.worker.outstanding():
                    await asyncio.sleep(0.01)

        asyncio.run(main())
        print(*(name for name in "{absent}".split() if name in sys.modules))
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout.strip()) == (0, ""), ran.stdout + ran.stderr


# -- Django: configured once a process, so each in a process of its own

DJANGO = """
    import asyncio, sys
    import django
    from django.conf import settings

    path, other = sys.argv[1:3]
    settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": path},
            "other": {"ENGINE": "django.db.backends.sqlite3", "NAME": other},
        },
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection, connections, transaction
    from tidings import App, Event, OutsideTransaction, WrongStore

    class Placed(Event, key="order"):
        order: int

    app = App("shop", store=f"sqlite:///{path}")
    app.open()

    def keys():
        return [envelope.key for envelope in app.store.query(lambda unit: unit.select(limit=100))]

    def orders():
        with connection.cursor() as cursor:
            cursor.execute("SELECT id FROM orders")
            return [row[0] for row in cursor.fetchall()]

    def insert(order):
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO orders VALUES (%s)", [order])

    def refused(error, tx, text):
        try:
            app.publish(Placed(order=99), tx=tx)
        except error as raised:
            assert text in str(raised), raised
        else:
            raise AssertionError(f"published in {tx}")

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
"""


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(
            """
            with transaction.atomic():
                insert(1)
                receipt = app.publish(Placed(order=1), tx=connection)
                assert receipt.position == 1 and keys() == []
            assert keys() == ["1"] and orders() == [1]
            """,
            id="commit",
        ),
        pytest.param(
            """
            try:
                with transaction.atomic():
                    insert(1)
                    app.publish(Placed(order=1), tx=connection)
                    1 / 0
            except ZeroDivisionError:
                pass
            assert keys() == [] and orders() == []
            """,
            id="rollback",
        ),
        pytest.param(
            """
            with transaction.atomic():
                app.publish(Placed(order=1), tx=connections["default"])
                try:
                    with transaction.atomic():
                        app.publish(Placed(order=2), tx=connection)
                        1 / 0
                except ZeroDivisionError:
                    pass
            assert keys() == ["1"]
            """,
            id="savepoint",
        ),
        pytest.param(
            """
            refused(OutsideTransaction, connection, "publish inside `with transaction.atomic():`")
            assert keys() == []
            """,
            id="outside",
        ),
        pytest.param(
            """
            with transaction.atomic(using="other"):
                refused(WrongStore, connections["other"], "Open your connection on the store's file")
            assert keys() == []
            """,
            id="another database",
        ),
        pytest.param(
            """
            transaction.set_autocommit(False)
            insert(1)
            app.publish(Placed(order=1), tx=connection)
            transaction.commit()
            insert(2)
            app.publish(Placed(order=2), tx=connection)
            transaction.rollback()
            transaction.set_autocommit(True)
            assert keys() == ["1"] and orders() == [1]
            """,
            id="autocommit off",
        ),
        pytest.param(
            """
            from asgiref.sync import sync_to_async

            @sync_to_async
            def place():
                with transaction.atomic():
                    insert(1)
                    app.publish(Placed(order=1), tx=connection)
                connection.close()

            asyncio.run(place())
            assert keys() == ["1"] and orders() == [1]
            """,
            id="from async code",
        ),
    ],
)
def test_django(script: str, tmp_path: Path, other: str) -> None:
    source = textwrap.dedent(DJANGO) + textwrap.dedent(script) + "\nconnections.close_all()\napp.close()\nprint('ok')\n"
    ran = subprocess.run([sys.executable, "-c", source, str(tmp_path / "shop.db"), other], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stdout + ran.stderr
