"""Servers for tests: one of each kind and version for the whole run, started when first asked for; a database of its own for each test.

    def test_something(postgres_url): ...                                   # the newest PostgreSQL that is here

    @pytest.mark.parametrize("postgres", [15, 18], indirect=True)           # every version that matters here
    def test_something(postgres, postgres_url): ...

    def test_something(kafka): topic = kafka.new_topic(8) ...               # a topic that nobody else uses

A test may stop, restart or kill a server: the next one finds it running. Where a server cannot be had, the test counts as untested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from servers.folder import Missing
from servers.kafka import Kafka
from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres, programs
from servers.secure_kafka import SecureKafka
from tests.promises import untested


def _untested(request: pytest.FixtureRequest, why: Missing) -> None:
    promises = [name for mark in request.node.iter_markers("promise") for name in mark.args]
    untested(", ".join(promises) or request.node.name, str(why))


@pytest.fixture(scope="session")
def postgres_servers() -> Iterator[Callable[[int | None], Postgres]]:
    """The run's server of a version; raises Missing."""
    with ExitStack() as open_ones:
        servers: dict[int, Postgres] = {}

        def server(version: int | None) -> Postgres:
            version = version or max(programs(), default=0)
            if version not in servers:
                servers[version] = open_ones.enter_context(Postgres(version, memory=True))
            return servers[version]

        yield server


@pytest.fixture
def postgres(request: pytest.FixtureRequest, postgres_servers: Callable[[int | None], Postgres]) -> Postgres:
    """A running PostgreSQL, shared with other tests."""
    try:
        server = postgres_servers(getattr(request, "param", None))
    except Missing as why:
        _untested(request, why)
        raise
    server.start()
    return server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of this test's own."""
    url = postgres.new_database()
    yield url
    postgres.start()
    postgres.drop_database(url)


@pytest.fixture
def pgbouncer(request: pytest.FixtureRequest, postgres: Postgres) -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode in front of ``postgres``."""
    try:
        bouncer = PgBouncer(postgres)
    except Missing as why:
        _untested(request, why)
        raise
    with bouncer:
        yield bouncer


@pytest.fixture(scope="session")
def kafka_servers() -> Iterator[Callable[[], Kafka]]:
    """The run's Kafka; raises Missing."""
    with ExitStack() as open_ones:
        servers: list[Kafka] = []

        def server() -> Kafka:
            if not servers:
                servers.append(open_ones.enter_context(Kafka(memory=True)))
            return servers[0]

        yield server


@pytest.fixture
def kafka(request: pytest.FixtureRequest, kafka_servers: Callable[[], Kafka]) -> Kafka:
    """A running Kafka, shared with other tests: names of topics and groups come from ``new_topic`` and ``new_name``."""
    try:
        server = kafka_servers()
    except Missing as why:
        _untested(request, why)
        raise
    server.thaw()
    server.start()
    return server


@pytest.fixture(scope="session")
def secure_kafka_servers() -> Iterator[Callable[[], SecureKafka]]:
    """The run's Kafka with users and rights; raises Missing."""
    with ExitStack() as open_ones:
        servers: list[SecureKafka] = []

        def server() -> SecureKafka:
            if not servers:
                servers.append(open_ones.enter_context(SecureKafka(memory=True)))
            return servers[0]

        yield server


@pytest.fixture
def secure_kafka(request: pytest.FixtureRequest, secure_kafka_servers: Callable[[], SecureKafka]) -> SecureKafka:
    """A running Kafka whose users may do what was allowed to them, shared with other tests."""
    try:
        server = secure_kafka_servers()
    except Missing as why:
        _untested(request, why)
        raise
    server.start()
    return server
