"""huey: enqueue for some seconds, then one consumer thread works it off for as long."""

import json
import logging
import sys
import time
from pathlib import Path

from huey import SqliteHuey
from huey.consumer import Consumer


def main(folder: Path, seconds: float) -> None:
    logging.disable(logging.CRITICAL)
    huey = SqliteHuey("bench", filename=str(folder / "huey.db"), fsync=True, journal_mode="wal", cache_mb=8, results=False)
    handled = 0

    @huey.task()  # type: ignore[untyped-decorator]
    def handle(order: dict[str, object]) -> None:
        nonlocal handled
        handled += 1

    published = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        handle({"order_id": published, "customer": "ada", "total": "12.50"})
        published += 1

    consumer = Consumer(huey, workers=1, periodic=False, initial_delay=0.001, max_delay=0.001, check_worker_health=False)
    consumer.start()
    began = time.perf_counter()
    while handled < published and time.perf_counter() - began < seconds:
        time.sleep(0.001)
    rate = handled / (time.perf_counter() - began)
    print(json.dumps({"publish": published / seconds, "handle": rate}), flush=True)
    consumer.stop(graceful=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
    sys.stdout.flush()
    import os

    os._exit(0)  # its threads are no daemons
