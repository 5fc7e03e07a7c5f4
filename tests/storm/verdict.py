"""What the storm left, counted: the deposits' own rows against every subscription's table, the log, and the outside world's memory."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.storm import database, service
from tests.storm.database import Database, connected

if TYPE_CHECKING:
    from tests.storm.storm import Outage

SLACK = 1.0
"""Seconds between a handler's end and its checkpoint beyond ``checkpoint_age``, without those in which the store was at one: a loop's lag
on a machine with few cores, and the pause before a checkpoint that failed is written again."""


@dataclass(slots=True)
class Verdict:
    deposits: int = 0
    follow_ups: int = 0
    calls: int = 0
    repeats: int = 0
    late: int = 0
    """Leases that ran out, frozen processes' included."""
    problems: list[str] = field(default_factory=list)


def unsettled(db: Database) -> tuple[int, int, int]:
    """Lanes behind the last event that concerns them, open positions, parked rows."""
    sqlite = isinstance(db, database.SQLite)
    with connected(db) as conn:
        left: tuple[int, int, int] = conn.execute(
            f"""
            WITH last AS (
                SELECT s.name, l.lane, max(l.position) AS position FROM tidings_log l, tidings_subscriptions s
                WHERE l.type {"IN (SELECT value FROM json_each(s.types))" if sqlite else "= ANY (s.types)"} GROUP BY 1, 2
            )
            SELECT
                (SELECT count(*) FROM last JOIN tidings_lanes t ON t.subscription = last.name AND t.lane = last.lane
                    AND t.position < last.position),
                (SELECT count(*) FROM tidings_lanes WHERE {"open IS NOT NULL" if sqlite else "open <> '{}'"}),
                (SELECT count(*) FROM tidings_parked)
            """
        ).fetchone()
    return left


def count(folder: Path, killed: Sequence[Outage], frozen: Sequence[Outage], downs: Sequence[Outage] = ()) -> Verdict:
    """Compare everything with everything. ``downs``: when the server was down, which may have cost every process its lease."""
    found = Verdict()
    db = database.of(folder)
    with connected(db) as conn:
        _rows(db, conn, found)
        made = Counter(dict(conn.execute("SELECT account, seq FROM accounts").fetchall()))
    _calls(folder, found, made, killed, frozen, downs)
    return found


def _rows(db: Database, conn: Any, found: Verdict) -> None:
    problems = found.problems
    accounts = {account: (seq, total) for account, seq, total in conn.execute("SELECT account, seq, total FROM accounts")}
    found.deposits = sum(seq for seq, _ in accounts.values())

    # Atomic publish: the publishers' rows and the log say the same.
    told = conn.execute("SELECT account, max(seq), sum(amount), count(*) FROM deposits GROUP BY 1").fetchall()
    if {account: (seq, total) for account, seq, total, _ in told} != accounts or sum(row[3] for row in told) != found.deposits:
        problems.append("the publishers' own tables differ")
    logged: dict[str, list[tuple[int, int]]] = defaultdict(list)
    kinds = "('storm.Deposit', 'storm.Booked', 'storm.Counted')"
    asked = f"SELECT type, {db.field('account')}, {db.field('seq')} FROM tidings_log WHERE type IN {kinds} ORDER BY position"
    for name, account, seq in conn.execute(asked):
        logged[name].append((account, seq))
    for name in ("storm.Deposit", "storm.Booked", "storm.Counted"):
        last: Counter[int] = Counter()
        for account, seq in logged[name]:
            if seq != last[account] + 1:
                problems.append(f"{name}: account {account} has {seq} behind {last[account]} in the log")
            last[account] = seq
        if last != Counter({account: seq for account, (seq, _) in accounts.items()}):
            problems.append(f"{name}: {last.total()} in the log, {found.deposits} deposits were made")
    found.follow_ups = len(logged["storm.Booked"]) + len(logged["storm.Counted"])
    twice = conn.execute("SELECT count(*) - count(DISTINCT event_id) FROM tidings_log").fetchone()[0]
    if twice:
        problems.append(f"{twice} event ids are in the log twice")

    # Effects once, in order: each reader's table.
    for reader, account, expected, got, worker, _ in conn.execute("SELECT * FROM violations ORDER BY at LIMIT 10"):
        problems.append(f"{reader}: account {account}: {got} came where {expected} was next (process {worker})")
    for name in (*service.readers(db), *service.FOLLOW_UPS):
        kept = {row[0]: row[1:] for row in conn.execute(f"SELECT account, last, total, times FROM seen_{name}")}
        amounts = name not in service.FOLLOW_UPS
        right = {account: (seq, total if amounts else seq, seq) for account, (seq, total) in accounts.items()}
        for account in sorted(right.keys() | kept.keys()):
            if kept.get(account) != right.get(account):
                problems.append(f"{name}: account {account}: last, total, times are {kept.get(account)}, should be {right.get(account)}")


def _calls(
    folder: Path, found: Verdict, made: Counter[int], killed: Sequence[Outage], frozen: Sequence[Outage], downs: Sequence[Outage]
) -> None:
    """The handler without a transaction: every event called, none before its forerunner, and repeated only what an outage explains."""
    problems = found.problems
    begun: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    ended: dict[tuple[int, int, int], float] = {}
    keys: dict[tuple[int, int], str] = {}
    highest: Counter[int] = Counter()
    for line in (folder / "calls").read_text().splitlines():
        what, process, account, seq, key, at = line.split()
        event, pid = (int(account), int(seq)), int(process)
        if keys.setdefault(event, key) != key:
            problems.append(f"outside: {event} was called with two idempotency keys")
        if what == "end":
            ended[pid, *event] = float(at)
            continue
        begun[event].append((pid, float(at)))
        if event[1] > highest[event[0]] + 1:
            problems.append(f"outside: account {account}: {seq} was called before {highest[event[0]] + 1}")
        highest[event[0]] = max(highest[event[0]], event[1])
    if highest != made:
        problems.append(f"outside: {highest.total()} of {made.total()} deposits were called")
    found.calls = sum(len(calls) for calls in begun.values())
    still = [(outage.at, outage.until) for outage in (*frozen, *downs)]
    late = _late(folder / "renewals", {outage.pid: outage.until for outage in killed})
    found.late = len(late)
    # Who was killed explains only his own; who stood still may have done so with the file's write lock, so that every lease ran out.
    hits: list[tuple[float, float, int | None]] = [(outage.at, outage.until, outage.pid) for outage in killed]
    hits += [(at, until, None) for at, until in (*still, *(one[:2] for one in late))]
    writing = _writing(folder / "checkpoints")
    unexplained: list[str] = []
    for event, calls in begun.items():
        for (pid, began), (_, again) in pairwise(calls):
            found.repeats += 1
            end = ended.get((pid, *event))
            # The first call's end was in no checkpoint when its process was hit.
            after = [(at, until) for at, until, victim in hits if began <= until and at <= again and victim in (None, pid)]
            usual = service.CHECKPOINT_AGE + SLACK
            idle = [*still, *writing[pid]]
            explained = any(end is None or at - end <= usual + _stood(idle, end, at) for at, until in after)
            if not explained:
                ending = "no end" if end is None else f"{end:.2f}"
                unexplained.append(f"{event} by {pid} from {began:.2f} to {ending}, again at {again:.2f}")
    if unexplained:
        problems.append(
            f"outside: {len(unexplained)} repeats of what had ended more than {service.CHECKPOINT_AGE} s before a kill or freeze:"
        )
        problems += unexplained
        problems += [f"killed: {one}" for one in killed] + [f"stood still: {one}" for one in (*frozen, *downs)]
        problems += [f"lease of {pid} ran out at {at:.2f} until {until:.2f}" for at, until, pid in late]
        problems += [
            f"checkpoint by {pid} from {at:.2f} to {until:.2f}" for pid in writing for at, until in writing[pid] if until - at > 0.5
        ]


def _late(renewals: Path, killed: Mapping[int, float]) -> list[tuple[float, float, int]]:
    """When leases ran out, until when, and whose: those that were renewed too late, or that their process did not live to renew."""
    held: dict[int, float] = {}
    late: list[tuple[float, float, int]] = []
    for line in renewals.read_text().splitlines():
        process, at, until = line.split()
        pid = int(process)
        if float(at) > held.get(pid, float("inf")):
            late.append((held[pid], float(at), pid))
        held[pid] = float(until)
    return late + [(until, killed[pid], pid) for pid, until in held.items() if until < killed.get(pid, 0.0)]


def _writing(checkpoints: Path) -> dict[int, list[tuple[float, float]]]:
    """By process, when the store was at a checkpoint; to the end of time if its process did not live to hear of it."""
    found: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for line in checkpoints.read_text().splitlines():
        what, process, at = line.split()
        mine = found[int(process)]
        if what == "begin":
            mine.append((float(at), float("inf")))
        else:
            mine[-1] = (mine[-1][0], float(at))
    return found


def _stood(still: Sequence[tuple[float, float]], since: float, until: float) -> float:
    """Seconds between two times in which some process stood still, perhaps with the file's write lock, or the store was at work."""
    total = 0.0
    for at, to in sorted(still):
        at, to = max(at, since), min(to, until)
        if to > at:
            total += to - at
            since = to
    return total
