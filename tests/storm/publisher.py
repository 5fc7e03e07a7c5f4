"""A publisher process: ``python -m tests.storm.publisher FOLDER SEED RATE``. Runs until the file ``stop`` appears.

Deposits in transactions of its own, some rolled back at various places, some through a connection with ``synchronous=NORMAL``, and
now and then a keyless event through the library's own transaction.
"""

from __future__ import annotations

import random
import sqlite3
import sys
import time
from pathlib import Path

from tests.storm import service
from tidings import App
from tidings.errors import StoreError


def connect(folder: Path, rng: random.Random) -> sqlite3.Connection:
    conn = sqlite3.connect(folder / "storm.db", isolation_level=None, timeout=10)
    conn.execute(f"PRAGMA synchronous = {'NORMAL' if rng.random() < 0.4 else 'FULL'}")
    return conn


def deposit(app: App, conn: sqlite3.Connection, rng: random.Random) -> None:
    """One to three deposits in one transaction; some are thought better of."""
    conn.execute("BEGIN IMMEDIATE" if rng.random() < 0.7 else "BEGIN")
    try:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            account, amount = rng.randrange(service.ACCOUNTS), rng.randint(1, 100)
            ((seq,),) = conn.execute(
                "INSERT INTO accounts VALUES (?, 1, ?)"
                " ON CONFLICT (account) DO UPDATE SET seq = seq + 1, total = total + excluded.total RETURNING seq",
                (account, amount),
            ).fetchall()
            app.publish(service.Deposit(account, seq, amount), tx=conn)
            if rng.random() < 0.1:
                time.sleep(rng.random() * 0.01)
            conn.execute("INSERT INTO deposits VALUES (?, ?, ?)", (account, seq, amount))
        if rng.random() < 0.15:
            conn.execute("ROLLBACK")
        else:
            conn.execute("COMMIT")
    except sqlite3.OperationalError:  # the file was held for too long: it didn't happen
        if conn.in_transaction:
            conn.execute("ROLLBACK")


def main(folder: Path, seed: int, rate: float) -> None:
    rng = random.Random(seed)
    app = service.make(folder / "storm.db")
    conn = connect(folder, rng)
    number = 0
    while not (folder / "stop").exists():
        if rng.random() < 0.05:
            number += 1
            try:
                app.publish(service.Ping(number), tx="own").result(30)
            except StoreError:
                pass
        else:
            deposit(app, conn, rng)
        if rng.random() < 0.02:
            conn.close()
            conn = connect(folder, rng)
        time.sleep(rng.expovariate(rate))
    conn.close()
    app.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
