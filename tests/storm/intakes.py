"""Intakes in a storm: three processes take one topic into one log, while they are killed and frozen, the broker is killed, the database
crashes, and the relay, which doesn't know what it has sent, sends some of it again. At the end each event is there once, in order.

    python -m tests.storm.intakes --seeds 3 --seconds 40 [--store sqlite]
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.relay.sending import Sender, an_event
from tidings import StoreError
from tidings.store import store_at
from tidings.store.port import Store

TAKERS = 3
KEYS = 151
PARTITIONS = 6
FROZEN = 4.5
"""Seconds: longer than a member's session, and than an idle transaction lives."""
LEAST = 4
"""Kills and freezes of a storm."""
SETTINGS = {"group.consumer.session.timeout.ms": "2000", "group.consumer.heartbeat.interval.ms": "200"}


@dataclass
class Storm:
    """
    Args:
        url: of an empty store. seconds: that it rages. postgres: whose crashes are part of it.
    Attributes:
        happened: what was done, by name. sent: events, each of which must be there once. again: of these, sent twice or more.
    """

    kafka: Kafka
    url: str
    seed: int
    seconds: float
    postgres: Postgres | None = None
    happened: Counter[str] = field(default_factory=Counter)
    sent: int = 0
    again: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self) -> list[str]:
        """What is wrong afterwards; nothing if all is well."""
        self._rng = random.Random(self.seed)
        self._topic = self.kafka.new_topic(PARTITIONS)
        self._over = threading.Event()
        store = store_at(self.url)
        store.open()
        self._takers: list[subprocess.Popen[str]] = []
        with ExitStack() as stack:
            stack.callback(store.close)
            stack.callback(self._end)
            for number in range(TAKERS):
                self._takers.append(self._taker(number))
            sending = threading.Thread(target=self._send)
            sending.start()
            self._rage()
            self._over.set()
            sending.join()
            if not self._settled(store):
                self.problems.append("not everything came in within a minute after the storm")
            self._judge(store)
        return self.problems

    def report(self) -> list[str]:
        done = ", ".join(f"{count} {what}" for what, count in sorted(self.happened.items()))
        return [
            f"seed {self.seed}: {self.sent} events, {self.again} of them sent again; {done}",
            *(f"  WRONG: {problem}" for problem in self.problems),
        ]

    # -- who takes part

    def _taker(self, number: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.storm.taker", self.url, self.kafka.address, self._topic, f"taker-{number}"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)

    def _send(self) -> None:
        """In order, and now and then once more from a little before: in the same order, with the same sequences."""
        rng = random.Random(self.seed + 1)
        sender = Sender(self.kafka, log=f"log-{self.seed}")
        while not self._over.is_set():
            count = rng.randrange(20, 400)
            back = rng.randrange(1, 150) if rng.random() < 0.3 else 0
            first = max(1, self.sent + 1 - back)
            events = [an_event(number, str(number * 7919 % KEYS)) for number in range(first, self.sent + 1 + count)]
            try:
                sender.send(self._topic, events)
            except RuntimeError:  # the broker is away, and nobody knows what arrived: a relay would do the same
                sender.close()
                sender = Sender(self.kafka, log=f"log-{self.seed}")
                sender.send(self._topic, events)
                self.again += len(events)
            self.again += self.sent + 1 - first
            self.sent += count
            self._over.wait(rng.uniform(0.0, 0.1))
        sender.close()

    # -- what befalls them

    def _rage(self) -> None:
        until = time.monotonic() + self.seconds
        thaw: list[tuple[float, int]] = []
        next_broker, next_database = self.seconds * 0.35, self.seconds * 0.2
        began = time.monotonic()
        # A broker that is slow to come back, on a busy machine, takes of that time: it goes on until it was a storm.
        while (now := time.monotonic()) < until or (self.happened["killed"] + self.happened["frozen"] < LEAST and now < until + 60):
            for at, number in list(thaw):
                if now >= at:
                    thaw.remove((at, number))
                    self._takers[number].send_signal(signal.SIGCONT)
            frozen = {number for _, number in thaw}
            number = self._rng.randrange(TAKERS)
            if number in frozen:
                pass
            elif self._rng.random() < 0.25 and len(frozen) < TAKERS - 1 and now + FROZEN < until + 2:
                self._takers[number].send_signal(signal.SIGSTOP)
                thaw.append((now + FROZEN, number))
                self.happened["frozen"] += 1
            else:
                self._takers[number].kill()
                self._takers[number].wait()
                self._takers[number] = self._taker(number)
                self.happened["killed"] += 1
            if now - began > next_broker:
                next_broker += self.seconds * 0.4
                self.kafka.kill()
                self.kafka.start()
                self.happened["broker killed"] += 1
            if self.postgres is not None and now - began > next_database:
                next_database += self.seconds * 0.25
                self.postgres.restart("immediate")
                self.happened["database crashed"] += 1
            time.sleep(self._rng.uniform(0.5, 1.8))
        for _, number in thaw:
            self._takers[number].send_signal(signal.SIGCONT)
        for number, taker in enumerate(self._takers):
            if taker.poll() is not None:
                self.problems.append(f"taker {number} ended by itself with {taker.returncode}")
                self._takers[number] = self._taker(number)

    def _end(self) -> None:
        for taker in self._takers:
            taker.kill()
            taker.wait()

    # -- what became of it

    def _settled(self, store: Store) -> bool:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                if store.query(lambda unit: len(unit.select(limit=self.sent + 1))) >= self.sent:
                    return True
            except StoreError:  # its connections are from before the crashes
                pass
            time.sleep(0.3)
        return False

    def _judge(self, store: Store) -> None:
        found = store.query(lambda unit: unit.select(limit=10_000_000))
        counted = Counter(event.event_id for event in found)
        expected = {an_event(number).event_id for number in range(1, self.sent + 1)}
        if lost := expected - set(counted):
            self.problems.append(f"{len(lost)} events are missing, for example {min(lost)}")
        if twice := [name for name, times in counted.items() if times > 1]:
            self.problems.append(f"{len(twice)} events are there more than once, for example {min(twice)}")
        last: dict[str | None, str] = {}
        wrong = 0
        for event in found:
            wrong += event.event_id < last.get(event.key, "")
            last[event.key] = event.event_id
        if wrong:
            self.problems.append(f"{wrong} events came behind a later one of their key")
        if dead := store.query(lambda unit: unit.count_parked("intake"))[2]:
            self.problems.append(f"{dead} records could not be read")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=40.0, help="that each seed rages")
    parser.add_argument("--store", choices=["sqlite", "postgres"], default="postgres")
    given = parser.parse_args()
    failed = False
    totals: Counter[str] = Counter()
    for seed in given.seed or range(1, given.seeds + 1):
        with ExitStack() as stack:
            kafka = stack.enter_context(Kafka(settings=SETTINGS))
            if given.store == "postgres":
                postgres = stack.enter_context(Postgres((15, 18)[seed % 2]))
                storm = Storm(kafka, postgres.new_database(), seed, given.seconds, postgres)
            else:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tidings-intakes-"))
                storm = Storm(kafka, f"sqlite:///{Path(folder) / 'log.db'}", seed, given.seconds)
            problems = storm.run()
            print(*storm.report(), sep="\n", flush=True)
            failed = failed or bool(problems)
            totals += storm.happened
            totals["events"] += storm.sent
    print("all seeds: " + ", ".join(f"{count} {what}" for what, count in sorted(totals.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
