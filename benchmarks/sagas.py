"""Sagas of five steps, plain or with a transaction each, to the committed end, against the same by hand and DBOS's workflows. Begun by a
call, as a workflow of DBOS is; and by an event, from before its publish, which the others don't do."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from servers.postgres import Postgres

from .measure import Row, folder
from .postgres.byhand import SETTINGS
from .program import PEERS, Program

NAMES = {"own": "sagas_own", "event": "sagas_own", "hand": "sagas_by_hand", "dbos": "peer_dbos_sagas"}
AT_ONCE = 64
FEW = 4
"""So many transactional workflows DBOS runs at once on SQLite, where it is quickest: with 64 its threads wait for the file for minutes."""


class Goal(NamedTuple):
    """``alone``: DBOS takes at least so many times as long. ``together``: at least so many times its rate."""

    alone: int
    together: int


GOALS = {
    ("PostgreSQL", "plain"): Goal(5, 20),
    ("SQLite", "plain"): Goal(5, 20),
    ("PostgreSQL", "tx"): Goal(5, 8),
    ("SQLite", "tx"): Goal(8, 8),
}
WORDS = {"plain": "five plain steps", "tx": "five steps with a transaction each"}


def run(quick: bool) -> Iterator[Row]:
    with ExitStack() as stack:
        server = stack.enter_context(Postgres(settings=SETTINGS))
        place = stack.enter_context(folder())
        for kind in WORDS:
            yield from _store("PostgreSQL", kind, lambda name: server.new_database(), quick)
            yield from _store("SQLite", kind, lambda name, kind=kind: f"sqlite:///{place / name}-{kind}.db", quick)


def _store(words: str, kind: str, url: Any, quick: bool) -> Iterator[Row]:
    names = [name for name in NAMES if name != "dbos" or PEERS.is_dir()]
    alone: dict[str, list[float]] = {name: [] for name in names}
    together: dict[str, list[float]] = {name: [] for name in names}
    with ExitStack() as stack:
        programs = {}
        for name in names:
            programs[name] = stack.enter_context(Program(NAMES[name], url(name), kind, peer=name == "dbos"))
            programs[name].ready()
        for _ in range(2 if quick else 5):  # in turns, so that all have the same weather
            for name, program in programs.items():
                how = " called" if name == "own" else ""
                program.ask(f"alone 5{how}")
                alone[name] += program.ask(f"alone {20 if quick else 50}{how}")
                if name != "hand" or kind == "plain":
                    most = FEW if (words, kind, name) == ("SQLite", "tx", "dbos") else AT_ONCE
                    together[name].append(program.ask(f"together {most} {1 if quick else 2}{how}"))
        for name in ("own", "event"):
            begun, completed, parked = programs[name].ask("counts")
            if completed != begun or parked:
                raise AssertionError(f"of {begun} sagas {completed} were completed, {parked} are parked")
    p50 = {name: statistics.median(times) for name, times in alone.items()}
    rate = {name: statistics.median(rates) for name, rates in together.items() if rates}
    goal, facts = GOALS[words, kind], {"p50_ms": p50, "per_second": rate}
    against = f"; DBOS {p50['dbos']:.1f} ms, {p50['dbos'] / p50['own']:.1f}×" if "dbos" in p50 else "; DBOS is not installed"
    by_hand = kind != "plain" or p50["own"] <= 2 * p50["hand"]
    yield Row(
        f"{words}: saga of {WORDS[kind]}, alone",
        f"p50 {p50['own']:.2f} ms (begun by an event {p50['event']:.2f}), by hand {p50['hand']:.2f} ms{against}",
        ("≤ 2× by hand, " if kind == "plain" else "") + f"≤ 1/{goal.alone} of DBOS",
        by_hand and ("dbos" not in p50 or goal.alone * p50["own"] <= p50["dbos"]),
        p50["own"] / p50["hand"],
        facts=facts,
    )
    few = f" ({FEW} at once)" if (words, kind) == ("SQLite", "tx") else ""
    against = f"DBOS{few} {rate['dbos']:,.0f}/s, {rate['own'] / rate['dbos']:.1f}×" if "dbos" in rate else "DBOS is not installed"
    by_hand = "hand" not in rate or rate["own"] >= 0.3 * rate["hand"]
    yield Row(
        f"{words}: sagas of {WORDS[kind]}, {AT_ONCE} at once",
        f"{rate['own']:,.0f}/s (begun by events {rate['event']:,.0f}), "
        + (f"by hand in groups {rate['hand']:,.0f}/s; " if "hand" in rate else "")
        + against,
        ("≥ 30 % by hand, " if kind == "plain" else "") + f"≥ {goal.together}× DBOS",
        by_hand and ("dbos" not in rate or rate["own"] >= goal.together * rate["dbos"]),
        rate["own"] / rate["hand"] if "hand" in rate else None,
        facts=facts,
    )
