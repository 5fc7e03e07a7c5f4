"""Debezium with its outbox event router, in Kafka Connect standalone: what benchmarks set Tidings' relay of an outbox table against.

``python -m servers.maven debezium`` brings it into ``.venv/debezium``.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from .folder import Folder, Missing, free_port
from .kafka import java
from .maven import DEBEZIUM

WORKER = {
    "key.converter": "org.apache.kafka.connect.storage.StringConverter",
    "value.converter": "org.apache.kafka.connect.storage.StringConverter",
    "plugin.discovery": "only_scan",
}
CONNECTOR = {
    "name": "outbox",
    "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
    "plugin.name": "pgoutput",
    "publication.autocreate.mode": "filtered",
    "snapshot.mode": "no_data",
    "tombstones.on.delete": "false",
    "transforms": "outbox",
    "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
}


class Debezium:
    """One connector, that can be stopped and started again.

    Args:
        heap: options for Java's memory; unless given, those of Kafka's own script.
        settings: of the connector, beside ``CONNECTOR``. worker: of Connect, beside ``WORKER``.

    Raises:
        Missing: there is no Java or no Debezium here.
    """

    def __init__(
        self,
        kafka: str,
        database: str,
        settings: Mapping[str, str],
        *,
        worker: Mapping[str, str] | None = None,
        heap: tuple[str, ...] = ("-Xms256M", "-Xmx2G"),
    ) -> None:
        program = java()
        if program is None:
            raise Missing("no Java 17 or newer is here, which Debezium runs on")
        if not any(DEBEZIUM.glob("debezium-connector-postgres-*.jar")):
            raise Missing("no Debezium is here; `python -m servers.maven debezium` copies it from Maven's packages")
        self._folder = Folder("debezium")
        try:
            url = urlsplit(database)
            connector = {
                **CONNECTOR,
                "database.hostname": url.hostname or "127.0.0.1",
                "database.port": str(url.port or 5432),
                "database.user": unquote(url.username or ""),
                "database.password": unquote(url.password or ""),
                "database.dbname": url.path.strip("/"),
                **settings,
            }
            own = {
                **WORKER,
                "bootstrap.servers": kafka,
                "offset.storage.file.filename": str(self._folder.path / "offsets"),
                "listeners": f"http://127.0.0.1:{free_port()}",
                **(worker or {}),
            }
            names = [self._write("worker.properties", own), self._write("connector.properties", connector)]
        except BaseException:
            self._folder.close()
            raise
        # G1 and the server's compiler, as Kafka's own script has them.
        self._command = [
            str(program), *heap, "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
            "-Djava.awt.headless=true", "-cp", f"{DEBEZIUM}/*", "org.apache.kafka.connect.cli.ConnectStandalone", *names,
        ]  # fmt: skip

    def _write(self, name: str, settings: Mapping[str, str]) -> str:
        path = self._folder.path / name
        path.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        self._folder.give(path)
        return str(path)

    def start(self) -> None:
        with (self._folder.path / "log").open("ab") as log:
            self._process = self._folder.start(self._command, log, {})

    @property
    def pid(self) -> int:
        return self._process.pid

    def stop(self, seconds: float = 60) -> None:
        """In order, so that it writes down how far it is."""
        self._process.terminate()
        self._process.wait(seconds)

    def log(self) -> str:
        return (self._folder.path / "log").read_text(errors="replace")

    def close(self) -> None:
        self._folder.close()

    def __enter__(self) -> Debezium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
