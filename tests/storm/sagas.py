"""A storm over sagas: ``python -m tests.storm.sagas --seeds 3``. Workers killed, and frozen past their lease and woken, while orders stream
in; the server crashes and connections are cut.

At the end every order has come to the one end that it can have: each effect in the database once, undone once if the order was refused,
what was called outside under one idempotency key, and nothing waits for a person. Exits non-zero if it is not so, on any seed.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from servers.postgres import Postgres
from tests.storm import database
from tests.storm.phases import IDLE, NAMES, Phases
from tests.storm.rage import Rage
from tests.storm.saga_worker import SCHEMA, STEPS, Placed, make, refused
from tests.storm.storm import SETTINGS
from tidings.errors import StoreError

WORKERS = 3
SLOTS = 16
STILL_SECONDS = 60.0


@dataclass(kw_only=True)
class SagaStorm(Rage):
    """
    Args:
        orders: so many, spread over the rage. postgres: version, 0 for the newest; None for SQLite.
    """

    orders: int = 800
    rate: float = 30.0
    postgres: int | None = None
    landed: Counter[str] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    repeats: int = 0

    def run(self) -> list[str]:
        """What was broken; empty if nothing was."""
        rng = random.Random(self.seed)
        with ExitStack() as stack:
            if self.postgres is not None:
                self.server = stack.enter_context(Postgres(self.postgres or None, settings=SETTINGS))
            url = f"sqlite:///{self.folder / 'storm.db'}" if self.server is None else self.server.new_database()
            (self.folder / "store").write_text(url)
            self.db = database.database(url)
            app = make(self.folder)
            app.open()
            app.close()
            with database.connected(self.db) as conn:
                for statement in SCHEMA:
                    conn.execute(statement)
            self.phases = Phases(self.folder / "phases", slots=SLOTS)
            self.slots: dict[int, int] = {}
            running = [self.begin() for _ in range(WORKERS)]
            publishing = threading.Thread(target=self._publish, daemon=True)
            try:
                publishing.start()
                self.rage(rng, running, [])
                publishing.join(300 + self.orders / self.rate)
                if publishing.is_alive():
                    self.problems.append("orders could not be placed")
                self._settle()
                for process in running:
                    process.send_signal(signal.SIGTERM)
                for process in running:
                    self.end(process, "a worker")
            finally:
                for process in running:
                    if process.poll() is None:
                        process.kill()
                    process.wait()
            self._judge()
        return self.problems

    def begin(self) -> subprocess.Popen[bytes]:
        slot = min(set(range(SLOTS)) - set(self.slots.values()))
        self.phases.clear(slot)
        process = self.start("tests.storm.saga_worker", str(self.lease), str(slot))
        self.slots[process.pid] = slot
        return process

    def hit(self, kind: str, victim: subprocess.Popen[bytes]) -> None:
        slot = self.slots[victim.pid] if kind == "freeze" else self.slots.pop(victim.pid)
        if kind != "restart":
            self.landed[NAMES[self.phases.landed(slot)]] += 1

    def _publish(self) -> None:
        app, conn = make(self.folder), None
        failures: tuple[type[Exception], ...] = (StoreError, *self.db.failures)
        app.open()
        for number in range(1, self.orders + 1):
            while True:
                try:
                    conn = conn or self.db.connect()
                    conn.execute(self.db.begin[0])
                    conn.execute(self.db.sql("INSERT INTO orders VALUES (?)"), (number,))
                    app.publish(Placed(order_id=number), tx=conn)
                    conn.execute("COMMIT")
                    break
                except failures:
                    if conn is not None and not self.db.undo(conn):
                        conn = None
                    time.sleep(0.05)
                    if self._placed(number):
                        break
            time.sleep(1 / self.rate)
        if conn is not None:
            conn.close()
        app.close()

    def _placed(self, number: int) -> bool:
        """Whether a commit that nobody has heard of took place."""
        while True:
            try:
                with database.connected(self.db) as conn:
                    found = conn.execute(self.db.sql("SELECT 1 FROM orders WHERE order_id = ?"), (number,)).fetchone()
                    return found is not None
            except self.db.failures:
                time.sleep(0.1)

    def _states(self) -> Counter[str]:
        store = self.store()
        store.open_to_read()
        try:
            return Counter(row.state for row in store.query(lambda unit: unit.sagas().rows(None, (), 10**6)))
        finally:
            store.close()

    def _settle(self) -> None:
        last, since = Counter[str](), time.monotonic()
        while True:
            try:
                now = self._states()
            except StoreError:
                now = Counter()
            if now["completed"] + now["compensated"] == self.orders:
                return
            if now != last:
                last, since = now, time.monotonic()
            if time.monotonic() - since > STILL_SECONDS:
                self.problems.append(f"stands still: {dict(now)} of {self.orders}")
                self.say_last_words()
                return
            time.sleep(0.2)

    def _judge(self) -> None:
        store = self.store()
        store.open_to_read()
        rows = {int(row.key): row for row in store.query(lambda unit: unit.sagas().rows(None, (), 10**6))}
        store.close()
        self.ended.update(row.state for row in rows.values())
        done: dict[int, Counter[str]] = defaultdict(Counter)
        with database.connected(self.db) as conn:
            placed = [row[0] for row in conn.execute("SELECT order_id FROM orders").fetchall()]
            for number, name in conn.execute("SELECT order_id, name FROM effects").fetchall():
                done[number][name] += 1
        keys: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)
        for line in (self.folder / "ledger").read_text().splitlines():
            number, name, key = line.split()
            keys[int(number), name][key] += 1
        self.repeats = sum(count - 1 for calls in keys.values() for count in calls.values())
        wrong: dict[str, list[int]] = defaultdict(list)
        for number in placed:
            row = rows.get(number)
            state = "lost" if row is None else row.state
            back = refused(number)
            if state != ("compensated" if back else "completed"):
                wrong[f"ended as {state}"].append(number)
            wanted = Counter(STEPS if not back else [*STEPS[:-1], *(f"un{name}" for name in STEPS[:-1])])
            if done[number] != wanted:
                wrong[f"have done {dict(done[number])}"].append(number)
            for name, called in (("charge", True), ("refund", back)):
                if len(keys[number, name]) != called:
                    wrong[f"called {name} under {len(keys[number, name])} keys"].append(number)
        self.problems += [f"{len(found)} orders {what}, for example {found[:3]}" for what, found in sorted(wrong.items())][:8]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="so many, from 1 (default 3)")
    parser.add_argument("--seed", type=int, action="append", help="this one only; may be given several times")
    parser.add_argument("--store", choices=["sqlite", "postgres"], action="append", help="this one only (default: in turn)")
    parser.add_argument("--orders", type=int, default=800, help="for each seed (default 800)")
    parser.add_argument("--rate", type=float, default=30.0, help="orders a second, at most (default 30)")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--freezes", type=int, default=4)
    parser.add_argument("--restarts", type=int, default=4, help="of workers that are asked to end")
    parser.add_argument("--crashes", type=int, default=4, help="of the server")
    parser.add_argument("--cuts", type=int, default=4, help="of connections")
    given = parser.parse_args()
    stores = given.store or ["postgres", "sqlite", "postgres"]
    failed, totals, landed = False, Counter[str](), Counter[str]()
    for place, seed in enumerate(given.seed or range(1, given.seeds + 1)):
        folder = Path(tempfile.mkdtemp(prefix=f"tidings-sagas-{seed}-"))
        began, kind = time.monotonic(), stores[place % len(stores)]
        storm = SagaStorm(
            folder=folder,
            seed=seed,
            orders=given.orders,
            rate=given.rate,
            postgres=0 if kind == "postgres" else None,
            kills=given.kills,
            freezes=given.freezes,
            restarts=given.restarts,
            crashes=given.crashes,
            cuts=given.cuts,
        )
        problems = storm.run()
        print(
            f"seed {seed}, {kind}: {given.orders} orders: {words(storm.ended)}; {words(storm.done)};"
            f" {storm.repeats} repeated calls outside; {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for problem in problems:
            print(f"seed {seed}: VIOLATED: {problem} (kept in {folder})", flush=True)
        if not problems:
            shutil.rmtree(folder, ignore_errors=True)
        failed = failed or bool(problems)
        totals.update(storm.done)
        landed.update(storm.landed)
    hits = sum(landed.values())
    busy = 0 if not hits else round(100 * (hits - landed[NAMES[IDLE]]) / hits)
    print(f"all seeds: {words(totals)}; they landed {words(landed)} ({busy}% under load)")
    return 1 if failed else 0


def words(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
