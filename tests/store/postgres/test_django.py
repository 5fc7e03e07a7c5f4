"""Django on PostgreSQL: configured once a process, so each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from servers.postgres import Postgres

DJANGO = """
    import asyncio, sys
    from urllib.parse import urlsplit
    import django
    from django.conf import settings

    def at(url):
        parts = urlsplit(url)
        return {
            "ENGINE": "django.db.backends.postgresql", "NAME": parts.path[1:], "USER": parts.username, "HOST": parts.hostname,
            "PORT": parts.port,
        }

    url, other = sys.argv[1:3]
    settings.configure(DATABASES={"default": at(url), "other": at(other)}, USE_TZ=True)
    django.setup()
    from django.db import connection, connections, transaction
    from django.db.backends.base.base import BaseDatabaseWrapper
    from tests.running import settled, until
    from tidings import App, Event, OutsideTransaction, Retry, WrongStore

    class Placed(Event, key="order"):
        order: int

    class Paid(Event, key="order"):
        order: int

    app = App("shop", store=url)
    app.open()

    def keys():
        return [envelope.key for envelope in app.store.query(lambda unit: unit.select(limit=100))]

    def ask(statement, *values):
        with connection.cursor() as cursor:
            cursor.execute(statement, values)
            return cursor.fetchall() if cursor.description else None

    def orders():
        return [row[0] for row in ask("SELECT id FROM orders ORDER BY id")]

    def insert(order):
        ask("INSERT INTO orders VALUES (%s)", order)

    def refused(error, tx, text):
        try:
            app.publish(Placed(order=99), tx=tx)
        except error as raised:
            assert text in str(raised), raised
        else:
            raise AssertionError(f"published in {tx}")

    ask("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
"""


def run(script: str, url: str, other: str) -> None:
    source = textwrap.dedent(DJANGO) + textwrap.dedent(script) + "\nconnections.close_all()\napp.close()\nprint('ok')\n"
    ran = subprocess.run([sys.executable, "-c", source, url, other], capture_output=True, text=True, timeout=90)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stdout + ran.stderr


@pytest.mark.promise("atomic publish")
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
                refused(WrongStore, connections["other"], "which holds another log")
                with connections["other"].cursor() as cursor:
                    cursor.execute("SELECT 1")  # its transaction goes on
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
def test_publishing(script: str, postgres: Postgres, postgres_url: str) -> None:
    other = postgres.new_database()
    try:
        run(f"App('other', store=other).open()\n{textwrap.dedent(script)}", postgres_url, other)
    finally:
        postgres.drop_database(other)


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("shared", [False, True])
def test_rows_follow_ups_and_the_checkpoint_are_one(postgres_url: str, shared: bool) -> None:
    """Also for one that fails once, one whose handler commits by itself, and when the server has ended the connection in between."""
    run(
        f"""
        failed, attempts = set(), {{}}

        @app.subscribe(Placed, name="pay", shared_tx={shared}, retry=Retry(attempts=3, first=0.01))
        def pay(event: Placed, tx: BaseDatabaseWrapper) -> Paid:
            attempts[event.order] = attempts.get(event.order, 0) + 1
            with tx.cursor() as cursor:
                cursor.execute("INSERT INTO orders VALUES (%s)", [event.order])
            if event.order % 4 == 2 and event.order not in failed:
                failed.add(event.order)
                raise RuntimeError("the gateway said no")
            return Paid(order=event.order)

        @app.subscribe(Placed, name="careless", retry=Retry(attempts=1))
        def careless(event: Placed, tx: BaseDatabaseWrapper) -> None:
            if event.order == 3:
                transaction.commit()

        async def main():
            async with app:
                for order in range(10):
                    await app.publish(Placed(order=order), tx="own")
                await until(lambda: keys().count("3") == 2 and len(keys()) == 20)
                await settled(app)
                await asyncio.to_thread(lambda: app.store.query(lambda unit: unit._all(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND application_name NOT LIKE 'tidings%%'")))
                for order in range(10, 14):
                    await app.publish(Placed(order=order), tx="own")
                await until(lambda: len(keys()) == 28)
                await settled(app)

        asyncio.run(main())
        connections.close_all()
        app.open()
        assert orders() == list(range(14)), orders()
        assert failed == {{2, 6, 10}}
        dead = app.store.query(lambda unit: unit.parked(states=["dead"]))
        assert [(row.subscription, row.envelope.key) for row in dead] == [("careless", "3")], dead
        """,
        postgres_url,
        postgres_url,
    )
