"""Relays under fire: ``python -m tests.storm.relays --seeds 3``. Processes that publish, processes that relay, a real Kafka and a database.

Relays are killed, frozen past their lease and woken, and restarted with another number of slots; the broker is killed and comes back; the
server crashes and connections are cut. At the end a plain read-committed consumer must have seen each event once, those of an account in
order. Exits non-zero if it has not, on any seed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from servers.kafka import Kafka
from servers.postgres import Postgres
from tests.brokers import reading
from tests.storm import database, service
from tests.storm.rage import Rage
from tests.storm.storm import SETTINGS
from tidings.errors import StoreError

RELAYS = 3
PUBLISHERS = 3
SLOTS = (1, 2, 3, 4, 6)


@dataclass(kw_only=True)
class RelayStorm(Rage):
    """
    Args:
        slots: restarts with another number of slots. outages: of the broker. postgres: version, 0 for the newest; None for SQLite.
    """

    kafka: Kafka
    postgres: int | None = None
    slots: int = 2
    outages: int = 2
    rate: float = 15.0
    what: str = "relay"
    log: str = "relays.log"
    replacing: tuple[str, ...] = ("kill", "slots")
    events: int = 0

    def run(self) -> list[str]:
        """What was broken; empty if nothing was."""
        self.rng = random.Random(self.seed)
        with ExitStack() as stack:
            if self.postgres is not None:
                self.server = stack.enter_context(Postgres(self.postgres or None, settings=SETTINGS))
            url = f"sqlite:///{self.folder / 'storm.db'}" if self.server is None else self.server.new_database()
            (self.folder / "store").write_text(url)
            self.db = database.database(url)
            app = service.make(self.db)
            app.open()
            app.close()
            with database.connected(self.db) as conn:
                for statement in service.SCHEMA.split(";"):
                    if statement.strip():
                        conn.execute(statement)
            self.topic = "storm"
            if self.topic in self.kafka.admin().list_topics(timeout=20).topics:
                self.kafka.drop_topics([self.topic])
            self.number = 3
            running = [self.begin() for _ in range(RELAYS)]
            publishing = [self.start("tests.storm.publisher", str(self.rng.randrange(10**6)), str(self.rate)) for _ in range(PUBLISHERS)]
            try:
                self.rage(self.rng, running, ["slots"] * self.slots + ["outage"] * self.outages)
                (self.folder / "stop").touch()
                for process in publishing:
                    self.end(process, "a publisher")
                self._settle()
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    self.end(process, "a relay")
            finally:
                for process in (*running, *publishing):
                    if process.poll() is None:
                        process.kill()
                    process.wait()
            self._judge()
        return self.problems

    def begin(self) -> subprocess.Popen[bytes]:
        return self.start("tests.storm.relaying", self.kafka.url, str(self.lease), str(self.number))

    def blow(self, kind: str) -> None:
        assert kind == "outage"
        self.kafka.kill()
        time.sleep(self.rng.uniform(0.0, 1.0))
        self.kafka.start()

    def hit(self, kind: str, victim: subprocess.Popen[bytes]) -> None:
        if kind == "slots":  # whoever comes in its place
            self.number = self.rng.choice([number for number in SLOTS if number != self.number])

    def _settle(self) -> None:
        """Until the store says that nothing is left; what stands still for a minute will not move."""
        last, since = -1, time.monotonic()
        while True:
            store = self.store()
            try:
                store.open_to_read()
                left = store.query(lambda unit: unit.behind("relay-storm").events)
            except StoreError:
                left = -1
            else:
                store.close()
            if left == 0:
                return
            if left != last:
                last, since = left, time.monotonic()
            if time.monotonic() - since > 60:
                store.open_to_read()
                lanes = store.query(lambda unit: unit.lanes("relay-storm"))
                store.close()
                places = sorted({(lane.worker or "nobody", lane.position) for lane in lanes})
                self.problems.append(f"stands still: by the store, {left} events are not sent; lanes of {places}")
                self.say_last_words()
                return
            time.sleep(0.2)

    def _judge(self) -> None:
        store = self.store()
        store.open_to_read()
        log = store.query(lambda unit: unit.select(limit=1_000_000))
        store.close()
        seen = reading.everything(self.kafka, self.topic)
        self.events = len(log)
        times = Counter(dict(record.headers)["ce_id"].decode() for record in seen)
        known = {event.event_id for event in log}
        for what, found in (
            ("lost", known - times.keys()),
            ("sent and not in the log", times.keys() - known),
            ("sent twice", {name for name, count in times.items() if count > 1}),
        ):
            if found:
                self.problems.append(f"{len(found)} {what}, for example {sorted(found)[:3]}")
        order: dict[int, list[int]] = {}
        for record in seen:
            if dict(record.headers)["ce_type"] == b"storm.Deposit":
                data = msgspec.json.decode(record.value or b"")
                order.setdefault(data["account"], []).append(data["seq"])
        with database.connected(self.db) as conn:
            wanted = dict(conn.execute("SELECT account, max(seq) FROM deposits GROUP BY account").fetchall())
        for account, last in wanted.items():
            if order.get(account) != list(range(1, last + 1)):
                self.problems.append(f"account {account} was not seen from 1 to {last} in order")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 (default 3)")
    parser.add_argument("--seed", type=int, action="append", help="this one only; may be given several times")
    parser.add_argument("--store", choices=["sqlite", "postgres"], action="append", help="this one only (default: in turn)")
    parser.add_argument("--kills", type=int, default=14)
    parser.add_argument("--freezes", type=int, default=5)
    given = parser.parse_args()
    stores = given.store or ["postgres", "sqlite", "postgres"]
    failed, totals = False, Counter[str]()
    with Kafka() as kafka:
        for place, seed in enumerate(given.seed or range(1, given.seeds + 1)):
            folder = Path(tempfile.mkdtemp(prefix=f"tidings-relays-{seed}-"))
            began, kind = time.monotonic(), stores[place % len(stores)]
            storm = RelayStorm(
                folder=folder,
                seed=seed,
                kafka=kafka,
                postgres=0 if kind == "postgres" else None,
                kills=given.kills,
                freezes=given.freezes,
                slots=3,
                outages=3,
            )
            problems = storm.run()
            done = ", ".join(f"{count} {what}" for what, count in sorted(storm.done.items()))
            print(f"seed {seed}, {kind}: {storm.events} events; {done}; {time.monotonic() - began:.0f} s", flush=True)
            for problem in problems:
                print(f"seed {seed}: VIOLATED: {problem} (kept in {folder})", flush=True)
            if not problems:
                shutil.rmtree(folder, ignore_errors=True)
            failed = failed or bool(problems)
            totals.update(storm.done)
            totals["events"] += storm.events
    print("all seeds: " + ", ".join(f"{count} {what}" for what, count in sorted(totals.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
