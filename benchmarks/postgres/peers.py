"""What else a user might pick on PostgreSQL, with its documented fast settings, on the same server, synced to disk at each commit."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from servers.postgres import Postgres

from ..measure import Row
from ..program import PEERS, Program
from .byhand import SETTINGS, fill

NAMES = {
    "procrastinate": "procrastinate, one worker, 50 jobs at once, successful ones deleted",
    "pgqueuer": "pgqueuer on asyncpg, one worker, batches of 500",
    "outbox": "faststream-outbox on asyncpg, 16 workers, batches of 500",
}


def run(quick: bool) -> Iterator[Row]:
    if not PEERS.is_dir():
        yield Row("peers on PostgreSQL", "not installed; run scripts/setup peers")
        return
    seconds = 1.0 if quick else 2.0
    measured: dict[str, list[dict[str, Any]]] = {"own": [], **{name: [] for name in NAMES}}
    with Postgres(settings=SETTINGS) as server:
        for _ in range(1 if quick else 3):
            for name, found in measured.items():  # in turns, so that all have the same weather
                url = server.new_database()
                found.append(_measure(name, url, seconds, 100_000 if name == "own" else 10_000))
                server.drop_database(url)
    own = measured.pop("own")
    if broken := [found["error"] for found in own if "error" in found]:
        yield Row("PostgreSQL: Tidings beside its peers", f"broke: {broken[0]}", met=False)
        return
    figures = {key: statistics.median(one[key] for one in own) for key in own[0]}
    yield Row(
        "PostgreSQL: Tidings, one publisher (psycopg), one worker",
        f"publish {figures['publish']:,.0f}/s one by one; handle {figures['handle']:,.0f}/s",
        facts=figures,
    )
    for name, words in NAMES.items():
        errors = [found["error"] for found in measured[name] if "error" in found]
        if errors:
            yield Row(words, f"broke: {errors[0]}")
            continue
        times = {
            what: statistics.median(ours[what] / found[what] for ours, found in zip(own, measured[name], strict=True))
            for what in ("publish", "handle")
        }
        rates = {what: statistics.median(found[what] for found in measured[name]) for what in times}
        parts = [f"{what} {rate:,.0f}/s (Tidings {times[what]:.1f}×)" for what, rate in rates.items()]
        yield Row(words, ", ".join(parts), "handle ≥ 20×", times["handle"] >= 20, facts={"rates": rates, "times": times})


def _measure(name: str, url: str, seconds: float, backlog: int) -> dict[str, Any]:
    peer = name != "own"
    if not peer:
        fill(url, backlog)
    try:
        with Program(f"peer_{name}" if peer else "pg_own", url, seconds, backlog, peer=peer) as program:
            result: dict[str, Any] = program.answer()
            return result
    except RuntimeError as error:
        return {"error": str(error)}
