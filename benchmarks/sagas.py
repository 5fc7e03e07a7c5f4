"""Sagas of five plain steps, from the publish of the event to the committed end, against the same by hand and DBOS's workflows."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from servers.postgres import Postgres

from .measure import Row, folder
from .postgres.byhand import SETTINGS
from .program import PEERS, Program

NAMES = {"own": "sagas_own", "hand": "sagas_by_hand", "dbos": "peer_dbos_sagas"}
AT_ONCE = 64


def run(quick: bool) -> Iterator[Row]:
    with ExitStack() as stack:
        server = stack.enter_context(Postgres(settings=SETTINGS))
        place = stack.enter_context(folder())
        yield from _store("PostgreSQL", lambda name: server.new_database(), quick)
        yield from _store("SQLite", lambda name: f"sqlite:///{place / name}.db", quick)


def _store(words: str, url: Any, quick: bool) -> Iterator[Row]:
    names = [name for name in NAMES if name != "dbos" or PEERS.is_dir()]
    alone: dict[str, list[float]] = {name: [] for name in names}
    together: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        programs = {}
        for name in names:
            given = [url(name)] + (["plain"] if name == "own" else [])
            programs[name] = stack.enter_context(Program(NAMES[name], *given, peer=name == "dbos"))
            programs[name].ready()
        for _ in range(2 if quick else 5):  # in turns, so that all have the same weather
            for name, program in programs.items():
                program.ask("alone 5")
                alone[name] += program.ask(f"alone {20 if quick else 50}")
                together[name].append(program.ask(f"together {AT_ONCE} {1 if quick else 2}"))
        begun, completed, parked = programs["own"].ask("counts")
        if completed != begun or parked:
            raise AssertionError(f"of {begun} sagas {completed} were completed, {parked} are parked")
    p50 = {name: statistics.median(times) for name, times in alone.items()}
    rate = {name: statistics.median(rates) for name, rates in together.items()}
    facts = {"p50_ms": p50, "per_second": rate}
    against = f"; DBOS {p50['dbos']:.1f} ms, {p50['dbos'] / p50['own']:.1f}×" if "dbos" in p50 else "; DBOS is not installed"
    yield Row(
        f"{words}: saga of five plain steps, alone",
        f"p50 {p50['own']:.2f} ms, by hand {p50['hand']:.2f} ms{against}",
        "≤ 2× by hand, ≤ 1/5 of DBOS",
        p50["own"] <= 2 * p50["hand"] and ("dbos" not in p50 or 5 * p50["own"] <= p50["dbos"]),
        p50["own"] / p50["hand"],
        facts=facts,
    )
    against = f"; DBOS {rate['dbos']:,.0f}/s, {rate['own'] / rate['dbos']:.1f}×" if "dbos" in rate else "; DBOS is not installed"
    yield Row(
        f"{words}: sagas of five plain steps, {AT_ONCE} at once",
        f"{rate['own']:,.0f}/s, by hand in groups {rate['hand']:,.0f}/s{against}",
        "≥ 30 % by hand, ≥ 20× DBOS",
        rate["own"] >= 0.3 * rate["hand"] and ("dbos" not in rate or rate["own"] >= 20 * rate["dbos"]),
        rate["own"] / rate["hand"],
        facts=facts,
    )
