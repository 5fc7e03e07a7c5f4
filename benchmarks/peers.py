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
    seconds = 1.0 if quick else 3.0
    ours = [_measure("own", seconds, False)]
    figures: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        figures[name] = _measure(f"peer_{name}", seconds, True)
        ours.append(_measure("own", seconds, False))
    own = {key: statistics.median(one[key] for one in ours) for key in ours[0]}
    yield Row(
        "Tidings, one publisher, one worker, FULL",
        f"publish {own['publish']:,.0f}/s one by one, {own['publish_64']:,.0f}/s from 64 tasks; handle {own['handle']:,.0f}/s",
        facts=own,
    )
    for name, words in NAMES.items():
        found = figures[name]
        if "error" in found:
            yield Row(words, f"broke: {found['error']}")
            continue
        yield Row(
            words,
            f"publish {found['publish']:,.0f}/s, handle {found['handle']:,.0f}/s;"
            f" Tidings {own['publish'] / found['publish']:.1f}× and {own['handle'] / found['handle']:.1f}×",
            facts=found,
        )


def _measure(name: str, seconds: float, peer: bool) -> dict[str, Any]:
    try:
        with folder() as path, Program(name, path, seconds, peer=peer) as program:
            result: dict[str, Any] = program.answer()
            return result
    except RuntimeError as error:
        return {"error": str(error)}
