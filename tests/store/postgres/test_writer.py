"""Connections that break: before a COMMIT the work is done again, during one the server is asked what became of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from urllib.parse import urlsplit

import psycopg
import pytest

from tidings import PostgresStore
from tidings.store.postgres.unit import PostgresUnit
from tidings.testing.contracts.store import an_event


class Proxy:
    """Passes bytes to a server and back, and cuts the connection where it is told to.

    Attributes:
        cut: ``before`` a COMMIT reaches the server, ``after`` it did and before its answer comes back, or None.
    """

    def __init__(self, port: int) -> None:
        self._server = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        self.cut: str | None = None
        self.cuts = 0
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server))
                self._open += [client, server]
                lost, answered = threading.Event(), threading.Event()
                threading.Thread(target=self._pass, args=(client, server, lost, answered, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, lost, answered, False), daemon=True).start()

    def _pass(
        self, source: socket.socket, target: socket.socket, lost: threading.Event, answered: threading.Event, is_client: bool
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if is_client and self.cut is not None and b"COMMIT\0" in data:
                    how, self.cut = self.cut, None
                    self.cuts += 1
                    lost.set()
                    if how == "after":
                        target.sendall(data)
                        answered.wait(10)  # it is done
                    break
                if lost.is_set():
                    answered.set()
                    return
                target.sendall(data)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    made = Proxy(urlsplit(postgres_url).port or 0)
    yield made
    made.close()


@pytest.fixture
def store(postgres_url: str, proxy: Proxy) -> Iterator[PostgresStore]:
    port = urlsplit(postgres_url).port
    store = PostgresStore(postgres_url.replace(f":{port}/", f":{proxy.port}/"))
    store.open()
    yield store
    store.close()


@pytest.mark.promise("effects once")
@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_commit_whose_answer_is_lost_happens_once(store: PostgresStore, proxy: Proxy, cut: str) -> None:
    for number in range(5):
        proxy.cut = cut
        (position,) = store.write(partial(PostgresUnit.append, envelopes=[an_event(number)])).result(20)
        assert position > 0
    assert proxy.cuts == 5
    rows, _ = store.read(0, 10**6)
    assert [row[7] for row in rows] == [an_event(number).event_id for number in range(5)]


@pytest.mark.promise("effects once")
def test_jobs_whose_connection_ends_are_run_again(store: PostgresStore, postgres_url: str) -> None:
    ended: list[int] = []

    def job(unit: PostgresUnit) -> list[int]:
        written = unit.append([an_event(1)])
        if not ended:
            ended.append(1)
            unit._conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return written

    store.write(job).result(20)
    with psycopg.connect(postgres_url) as conn:
        assert conn.execute("SELECT count(*) FROM tidings_log").fetchone() == (1,)


def test_one_jobs_error_leaves_the_connection_as_it_was(store: PostgresStore) -> None:
    def wrong(unit: PostgresUnit) -> None:
        unit._conn.execute("SELECT 1 / 0")

    failing = store.write(wrong)
    writing = store.write(lambda unit: unit.append([an_event(1)]))
    assert failing.exception(10) is not None
    assert len(writing.result(10)) == 1
