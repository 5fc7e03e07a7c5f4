"""What else a user might pick, with its documented fast settings, on the same disk and at equal durability where it has any."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from .measure import Row, folder
from .program import PEERS, Program

NAMES = {
    "huey": "huey, SqliteHuey(fsync=True, results=False), WAL, one worker thread",
    "litequeue": "litequeue, WAL, synchronous FULL",
    "faststream": "FastStream, in-memory broker (nothing durable)",
    "dbos": "DBOS queue on SQLite, WAL, polled every 10 ms",
}


def run(quick: bool) -> Iterator[Row]:
    if not PEERS.is_dir():
        yield Row("peers", "not installed; run scripts/setup peers")
        return
    rounds = 1 if quick else 3
    measured: dict[str, list[dict[str, Any]]] = {"own": [], **{name: [] for name in NAMES}}
    for _ in range(rounds):
        for name, found in measured.items():  # in turns, so that all have the same weather
            found.append(_measure(name if name == "own" else f"peer_{name}", 1.0, peer=name != "own"))
    own = measured.pop("own")
    figures = {key: statistics.median(one[key] for one in own) for key in own[0]}
    yield Row(
        "Tidings, one publisher, one worker, FULL",
        f"publish {figures['publish']:,.0f}/s one by one, {figures['publish_64']:,.0f}/s from 64 tasks; handle {figures['handle']:,.0f}/s",
        facts=figures,
    )
    for name, words in NAMES.items():
        errors = [found["error"] for found in measured[name] if "error" in found]
        if errors:
            yield Row(words, f"broke: {errors[0]}")
            continue
        parts = []
        facts: dict[str, Any] = {"rounds": measured[name]}
        for what in ("publish", "handle"):
            rate = statistics.median(found[what] for found in measured[name])
            times = statistics.median(ours[what] / found[what] for ours, found in zip(own, measured[name], strict=True))
            parts.append(f"{what} {rate:,.0f}/s (Tidings {times:.1f}×)")
            facts[what], facts[f"{what}_times"] = rate, times
        yield Row(words, ", ".join(parts), facts=facts)


def _measure(name: str, seconds: float, peer: bool) -> dict[str, Any]:
    try:
        with folder() as path, Program(name, path, seconds, peer=peer) as program:
            result: dict[str, Any] = program.answer()
            return result
    except RuntimeError as error:
        return {"error": str(error)}
