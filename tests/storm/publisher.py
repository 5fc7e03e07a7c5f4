"""A publisher process: ``python -m tests.storm.publisher FOLDER SEED RATE``. Runs until the file ``stop`` appears.

Deposits in transactions of its own, some rolled back at various places, some through a connection whose commits don't wait for the disk,
and now and then a keyless event through the library's own transaction.
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.storm import database, service
from tidings import App
from tidings.errors import StoreError


def connect(db: database.Database, rng: random.Random) -> Any:
    """A connection, as soon as there can be one."""
    careless = rng.random() < 0.4
    while True:
        try:
            return db.connect(careless=careless)
        except db.failures:
            time.sleep(0.1)


def deposit(app: App, db: database.Database, conn: Any, rng: random.Random) -> bool:
    """One to three deposits in one transaction; some are thought better of. False if the connection is of no use any more."""
    try:
        conn.execute(db.begin[0] if rng.random() < 0.7 else db.begin[1])
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            account, amount = rng.randrange(service.ACCOUNTS), rng.randint(1, 100)
            ((seq,),) = conn.execute(
                db.sql(
                    "INSERT INTO accounts VALUES (?, 1, ?) ON CONFLICT (account)"
                    " DO UPDATE SET seq = accounts.seq + 1, total = accounts.total + excluded.total RETURNING seq"
                ),
                (account, amount),
            ).fetchall()
            app.publish(service.Deposit(account, seq, amount), tx=conn)
            if rng.random() < 0.1:
                time.sleep(rng.random() * 0.01)
            conn.execute(db.sql("INSERT INTO deposits VALUES (?, ?, ?)"), (account, seq, amount))
        if rng.random() < 0.15:
            conn.execute("ROLLBACK")
        else:
            conn.execute("COMMIT")
    except db.failures:  # the file was held for too long, or the server went away: nobody was told that it happened
        return db.undo(conn)
    return True


def main(folder: Path, seed: int, rate: float) -> None:
    rng = random.Random(seed)
    db = database.of(folder)
    app = service.make(db)
    conn = connect(db, rng)
    number = 0
    while not (folder / "stop").exists():
        usable = True
        try:
            if rng.random() < 0.05:
                number += 1
                app.publish(service.Ping(number), tx="own").result(30)
            else:
                usable = deposit(app, db, conn, rng)
        except StoreError:  # it can't be opened or written now
            usable = db.undo(conn)
        if not usable or rng.random() < 0.02:
            conn.close()
            conn = connect(db, rng)
        time.sleep(rng.expovariate(rate))
    conn.close()
    app.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
