"""How long a publish waits for the file while handlers hold their transactions for 5 ms an event."""

from __future__ import annotations

import time
from collections.abc import Iterator

from .byhand import connect, fill, order, store
from .measure import Row, folder, percentile
from .program import Program


def run(quick: bool) -> Iterator[Row]:
    for kind, words in (("slow-shared", "that share transactions (20 ms each)"), ("slow", "with a transaction each")):
        with folder() as path:
            file = path / "log.db"
            app = store(file)
            conn = connect(file)
            conn.execute("CREATE TABLE held (id INTEGER PRIMARY KEY)")
            fill(file, 5_000)
            times: list[float] = []
            with Program("worker", file, kind) as worker:
                worker.ask("go")
                until = time.perf_counter() + (2.0 if quick else 8.0)
                before = worker.ask("handled")
                while time.perf_counter() < until:
                    began = time.perf_counter()
                    conn.execute("BEGIN IMMEDIATE")
                    app.publish(order(1), tx=conn)
                    conn.execute("COMMIT")
                    times.append((time.perf_counter() - began) * 1e3)
                    time.sleep(0.005)
                handled = worker.ask("handled") - before
            conn.close()
            app.close()
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        yield Row(
            f"publish beside slow handlers {words}, from another process",
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most {max(times):.0f} ms; {handled} handled meanwhile",
            "printed",
            facts={"p50_ms": p50, "p99_ms": p99, "most_ms": max(times), "publishes": len(times)},
        )
