"""litequeue: put for some seconds, then pop and mark as done for as long."""

import json
import sys
import time
from pathlib import Path

from litequeue import LiteQueue


def main(folder: Path, seconds: float) -> None:
    queue = LiteQueue(folder / "queue.db")
    queue.conn.execute("PRAGMA synchronous = FULL")
    published = handled = 0
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        queue.put(json.dumps({"order_id": published, "customer": "ada", "total": "12.50"}))
        published += 1
    began = time.perf_counter()
    while time.perf_counter() - began < seconds and (task := queue.pop()) is not None:
        json.loads(task.data)
        queue.done(task.message_id)
        handled += 1
    rate = handled / (time.perf_counter() - began)
    print(json.dumps({"publish": published / seconds, "handle": rate}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
