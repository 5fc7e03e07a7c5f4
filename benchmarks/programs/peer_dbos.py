"""DBOS: enqueue workflows on a SQLite system database for some seconds, while its queue thread runs them; then wait as long."""

import json
import logging
import os
import sqlite3
import sys
import time
from pathlib import Path

from dbos import DBOS


def main(folder: Path, seconds: float) -> None:
    file = folder / "dbos.db"
    conn = sqlite3.connect(file)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.close()
    DBOS(config={"name": "bench", "system_database_url": f"sqlite:///{file}", "log_level": "CRITICAL", "enable_otlp": False})
    handled = 0

    @DBOS.workflow()  # type: ignore[untyped-decorator]
    def handle(order: dict[str, object]) -> None:
        nonlocal handled
        handled += 1

    DBOS.launch()
    DBOS.register_queue("orders", polling_interval_sec=0.01)
    handle({"order_id": 0})
    handled = published = 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        DBOS.enqueue_workflow("orders", handle, {"order_id": published, "customer": "ada", "total": "12.50"})
        published += 1
    enqueued = time.perf_counter() - began
    while handled < published and time.perf_counter() - began < 3 * seconds:
        time.sleep(0.001)
    whole = time.perf_counter() - began
    print(json.dumps({"publish": published / enqueued, "handle": handled / whole}), flush=True)
    sys.stdout.flush()
    os._exit(0)  # its threads are no daemons


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    main(Path(sys.argv[1]), float(sys.argv[2]))
