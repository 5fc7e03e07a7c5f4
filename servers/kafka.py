"""A real Apache Kafka: one KRaft node, formatted in a temporary folder, on loopback.

    with Kafka() as server:
        server.address                      # 127.0.0.1:15433
        topic = server.new_topic(8)         # "topic1", with eight partitions

Java runs it; the program is in ``.venv/kafka``, where scripts/setup copied it from Maven's packages. What a SIGKILL leaves is in the
operating system's cache, so a killed server comes back with everything that it had acknowledged.
"""

from __future__ import annotations

import base64
import re
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from .folder import Folder, Missing, free_port
from .maven import COPIED

SETTINGS = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "inter.broker.listener.name": "CLIENTS",
    "controller.listener.names": "CONTROLLER",
    "listener.security.protocol.map": "CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT",
    # one node
    "offsets.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "auto.create.topics.enable": "false",
    # a killed one is back in four seconds, not in twelve
    "broker.session.timeout.ms": "1500",
    "broker.heartbeat.interval.ms": "300",
    # what tests wait for is quick; the defaults are ten seconds and more
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "500",
    "file.delete.delay.ms": "1000",
    # little memory
    "log.cleaner.dedupe.buffer.size": "8388608",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "background.threads": "2",
}

_JAVA = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Dlog4j2.level=WARN", "-Djava.awt.headless=true")


def java() -> Path | None:
    """Java 17 or newer, if it is here."""
    found = shutil.which("java")
    if found is None:
        return None
    told = subprocess.run([found, "-version"], capture_output=True, text=True).stderr
    version = re.search(r'version "(\d+)', told)
    return Path(found) if version and int(version[1]) >= 17 else None


class Kafka:
    """A server of its own: nobody else's is ever touched.

    Args:
        settings: of server.properties, beside or instead of ``SETTINGS``.
        memory: keep the data in memory if there is room.

    Raises:
        Missing: there is no Java or no Kafka here.

    Attributes:
        port: on 127.0.0.1; the same over restarts, as is the data.
    """

    def __init__(self, *, settings: Mapping[str, str] | None = None, memory: bool = False) -> None:
        program = java()
        if program is None:
            raise Missing("no Java 17 or newer is here, which Kafka runs on; install one, and Maven, and run scripts/setup")
        if not any(COPIED.glob("kafka_*.jar")):
            raise Missing("no Kafka is here; scripts/setup copies it from Maven's packages (it needs mvn)")
        self._java = str(program)
        self._settings = {**SETTINGS, **(settings or {})}
        self._made = 0
        self._admin: Any = None
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = Folder("kafka", memory=memory)
        try:
            self._jars = self._reachable(COPIED)
            self.data = self._folder.path / "data"
            self._first_start()
        except BaseException:
            self._folder.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> str:
        """What clients call bootstrap.servers."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"kafka://{self.address}"

    def admin(self) -> Any:
        """A confluent_kafka AdminClient, the same for all."""
        from confluent_kafka.admin import AdminClient

        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.address, "log_level": 0, "reconnect.backoff.max.ms": 200})
        return self._admin

    def new_name(self, kind: str = "topic") -> str:
        """A name that nobody on this server has used."""
        self._made += 1
        return f"{kind}{self._made}"

    def new_topic(self, partitions: int = 8, *, name: str | None = None, settings: Mapping[str, str] | None = None) -> str:
        """Make a topic, and wait until it can be used; its name."""
        from confluent_kafka import KafkaError, KafkaException
        from confluent_kafka.cimpl import NewTopic

        name = name or self.new_name()
        until = time.monotonic() + 20
        while True:
            try:
                self.admin().create_topics([NewTopic(name, partitions, 1, config=dict(settings or {}))])[name].result(20)
                break
            except KafkaException as error:  # after a stop or a freeze the controller takes a moment to know the broker again
                if error.args[0].code() != KafkaError.INVALID_REPLICATION_FACTOR or time.monotonic() > until:
                    raise
            time.sleep(0.05)
        while True:
            there = self.admin().list_topics(name, timeout=10).topics[name]
            if len(there.partitions) == partitions and all(one.leader == 1 for one in there.partitions.values()):
                return name
            if time.monotonic() > until:
                raise RuntimeError(f"the topic {name} got no leader")
            time.sleep(0.01)

    def drop_topics(self, names: Sequence[str]) -> None:
        """Delete topics, and wait until nobody sees them any more."""
        for future in self.admin().delete_topics(list(names)).values():
            future.result(20)
        until = time.monotonic() + 10
        while set(names) & set(self.admin().list_topics(timeout=10).topics) and time.monotonic() < until:
            time.sleep(0.01)

    # -- life and death

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, seconds: float = 60) -> None:
        """Start it, and wait until it takes requests. Does nothing if it runs.

        Raises:
            RuntimeError: it ended by itself, with the end of its log, or was not ready in time.
        """
        if self.running:
            return
        with (self._folder.path / "log").open("ab") as log:
            self._process = self._folder.start(self._program("kafka.Kafka", str(self._folder.path / "server.properties")), log, {})
        until = time.monotonic() + seconds
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"Kafka did not start:\n{self.log()[-2000:]}")

    def stop(self, seconds: float = 60) -> None:
        """End it in order."""
        if self._process is not None and self.running:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(seconds)

    def restart(self) -> None:
        self.stop()
        self.start()

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None and self.running:
            self._process.kill()
            self._process.wait()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers, until ``thaw``."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its data."""
        self._admin = None
        self.kill()
        self._folder.close()

    def log(self) -> str:
        return (self._folder.path / "log").read_text(errors="replace")

    # -- making it

    def _first_start(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        path = self._folder.path / "server.properties"
        for attempt in range(5):
            self.port, controller = free_port(), free_port()
            for_clients = ",".join(f"{name}://{address}" for name, address in self._listeners().items())
            listeners = {
                "listeners": f"{for_clients},CONTROLLER://127.0.0.1:{controller}",
                "advertised.listeners": for_clients,
                "controller.quorum.voters": f"1@127.0.0.1:{controller}",
                "log.dirs": str(self.data),
            }
            path.write_text("".join(f"{name}={value}\n" for name, value in {**self._settings, **listeners}.items()))
            self._folder.give(path)
            shutil.rmtree(self.data, ignore_errors=True)
            # A cluster id that begins with a dash would be read as an option.
            self._folder.run(self._program("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", f"--config={path}"), {})
            try:
                self.start()
                return
            except RuntimeError:
                if attempt == 4 or "BindException" not in self.log():
                    raise
                (self._folder.path / "log").unlink()

    def _listeners(self) -> dict[str, str]:
        """Name and address of each way in for clients. Asked again if a port was taken."""
        return {"CLIENTS": self.address}

    def _program(self, name: str, *arguments: str) -> list[str]:
        return [self._java, *_JAVA, "-cp", f"{self._jars}/*", name, *arguments]

    def _reachable(self, jars: Path) -> Path:
        """The program's folder, or a copy of it if the servers' user cannot get there (a checkout below a private folder)."""
        try:
            self._folder.run(["/bin/ls", str(jars)], {})
            return jars
        except (RuntimeError, PermissionError):
            return Path(shutil.copytree(jars, self._folder.path / "program"))

    def _ready(self) -> bool:
        """Whether it knows itself, and what is led leads."""
        from confluent_kafka import KafkaException

        try:
            cluster = self.admin().list_topics(timeout=1)
        except KafkaException:
            time.sleep(0.02)
            return False
        led = all(part.leader == 1 for topic in cluster.topics.values() for part in topic.partitions.values())
        if 1 not in cluster.brokers or not led:
            time.sleep(0.02)
            return False
        return True
