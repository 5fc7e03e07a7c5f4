"""One storm: start, kill and freeze by a seed, let it settle, count."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from servers.pgbouncer import PgBouncer
from servers.postgres import Postgres
from tests.promises import ROOT
from tests.storm import database, service, verdict
from tests.storm.phases import IDLE, NAMES, Phases

PUBLISHER_SLOT = 40

PATIENCE_SECONDS = 40
"""For a process to begin, or to end once it is asked to."""

SETTINGS = {"deadlock_timeout": "100ms"}
"""The server's, in proportion to a lease that is so short."""


@dataclass(slots=True)
class Process:
    """A process that the storm started. ``slot``: its place in the page of phases."""

    popen: subprocess.Popen[bytes]
    slot: int
    born: float
    thaw: float = 0.0

    @property
    def pid(self) -> int:
        return self.popen.pid


@dataclass(slots=True)
class Outage:
    """A process was killed, or stood still, from ``at`` to ``until``, in seconds of the monotonic clock.

    For one that was killed, from before the signal until it was gone: it may sit in a write to the disk for longer than its lease holds.
    """

    pid: int
    at: float
    phase: int
    until: float = float("inf")


@dataclass
class Storm:
    """Workers and publishers under fire.

    Args:
        seed: decides who is hit, when and how. kills, freezes: how many. seconds: at most, without the settling.
        restarts: how many workers are asked to end in the middle of their work, as in a deploy; what they have begun they must end.
        postgres: on a server of this version, 0 for the newest that is here; None for SQLite. crashes, cuts: how often it crashes, and
            how often some of its connections are cut.
        pooled: everybody goes through PgBouncer, in transaction mode.
        lease: of the workers; a freeze lasts longer.
    """

    folder: Path
    seed: int
    kills: int
    freezes: int
    seconds: float
    restarts: int = 0
    postgres: int | None = None
    crashes: int = 0
    cuts: int = 0
    pooled: bool = False
    lease: float = 0.8
    workers: int = 3
    publishers: int = 3
    rate: float = 15.0
    say: Callable[[str], None] = print
    killed: list[Outage] = field(default_factory=list)
    frozen: list[Outage] = field(default_factory=list)
    downs: list[Outage] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    restarted: int = 0
    problems: list[str] = field(default_factory=list)

    def run(self) -> verdict.Verdict:
        """Everything; the verdict has no ``problems`` if every promise held.

        Raises:
            Missing: there is no such PostgreSQL here.
        """
        with ExitStack() as stack:
            self.server = None
            if self.postgres is not None:
                self.server = stack.enter_context(Postgres(self.postgres or None, settings=SETTINGS))
                if self.pooled:
                    self.pgbouncer = stack.enter_context(PgBouncer(self.server, pool=40))
            return self._run()

    def _run(self) -> verdict.Verdict:
        self.rng = random.Random(self.seed)
        self.phases = Phases(self.folder / "phases")
        self._prepare()
        running = [self._worker(slot) for slot in range(self.workers)]
        publishing = [self._publisher(number) for number in range(self.publishers)]
        try:
            self._rage(running, publishing)
            (self.folder / "stop").touch()
            for process in publishing:
                self._end(process, "a publisher", PATIENCE_SECONDS)
            self._stop(running)
            running = [self._worker(slot) for slot in range(2)]  # fresh ones, that nobody disturbs
            self._settle(running)
            self._stop(running)
        finally:
            for process in (*running, *publishing):
                if process.popen.poll() is None:
                    process.popen.kill()
                process.popen.wait()
        kinds = (("killed", self.killed), ("frozen", self.frozen), ("down", self.downs))
        told = [f"{kind} {one}\n" for kind, outages in kinds for one in outages]
        (self.folder / "outages").write_text("".join(told))
        if self.server is not None:
            (self.folder / "server.log").write_text(self.server.log())
        found = verdict.count(self.folder, self.killed, self.frozen, self.downs)
        found.problems = self.problems + found.problems
        return found

    def landed(self) -> Counter[int]:
        """How many kills and freezes of workers hit each phase."""
        return Counter(outage.phase for outage in (*self.killed, *self.frozen) if outage.phase >= 0)

    def under_load(self) -> float:
        """The part of them that hit a worker at work."""
        landed = self.landed()
        return 1 - landed[IDLE] / max(1, landed.total())

    def report(self, found: verdict.Verdict) -> list[str]:
        landed = self.landed()
        places = ", ".join(f"{name} {landed[phase]}" for phase, name in enumerate(NAMES))
        lines = [
            f"seed {self.seed}: {len(self.killed)} killed, {len(self.frozen)} frozen, {self.restarted} restarted;"
            f" {places} ({self.under_load():.0%} under load)",
            f"seed {self.seed}: {found.deposits} deposits, {found.follow_ups} follow-ups, {found.calls} calls outside of which"
            f" {found.repeats} were repeats; {found.late} leases ran out",
        ]
        if self.server is not None:
            cut = ", ".join(f"{name} {count}" for name, count in self.cut.most_common())
            lines.append(
                f"seed {self.seed}: PostgreSQL {self.server.version} crashed {len(self.downs)} times;"
                f" {self.cut.total()} connections cut: {cut}"
            )
        return lines + [f"seed {self.seed}: VIOLATED: {problem}" for problem in found.problems]

    # -- processes

    def _prepare(self) -> None:
        url = f"sqlite:///{self.folder / 'storm.db'}" if self.server is None else self.server.new_database()
        self.direct = self.db = database.database(url)
        if self.pooled:
            url = self.pgbouncer.url(url)
            (self.folder / "pooled").touch()
        (self.folder / "store").write_text(url)
        self.db = database.of(self.folder)
        app = service.make(self.db)
        app.open()
        app.close()
        with database.connected(self.db) as conn:
            for statement in service.SCHEMA.split(";"):
                if statement.strip():
                    conn.execute(statement)

    def _start(self, slot: int, *arguments: str) -> Process:
        self.phases.clear(slot)
        source = os.environ.get("PYTHONPATH", "")
        with (self.folder / "errors").open("ab") as errors:
            popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{source}" if source else str(ROOT)},
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )
        return Process(popen, slot, time.monotonic())

    def _worker(self, slot: int) -> Process:
        return self._start(slot, "tests.storm.worker", str(self.folder), str(slot), str(self.rng.randrange(10**6)), str(self.lease))

    def _publisher(self, number: int) -> Process:
        seed = str(self.rng.randrange(10**6))
        return self._start(PUBLISHER_SLOT + number, "tests.storm.publisher", str(self.folder), seed, str(self.rate))

    def _ready(self, process: Process) -> bool:
        return (self.folder / f"ready-{process.pid}").exists()

    def _stop(self, running: list[Process]) -> None:
        """Ask workers to end, those that have just begun once they can hear it."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not all(self._ready(process) for process in running) and time.monotonic() < until:
            time.sleep(0.05)
        for process in running:
            process.popen.send_signal(signal.SIGTERM)
        for process in running:
            self._end(process, "a worker", PATIENCE_SECONDS)

    def _end(self, process: Process, what: str, seconds: float) -> None:
        try:
            code = process.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{what} did not end within {seconds} s of being asked to")
            return
        if code != 0:
            self.problems.append(f"{what} ended with {code}; see {self.folder / 'errors'}")

    # -- violence

    def _rage(self, running: list[Process], publishing: list[Process]) -> None:
        rng, until = self.rng, time.monotonic() + self.seconds
        plan = ["kill"] * self.kills + ["freeze"] * self.freezes + ["publisher"] * max(1, self.kills // 10)
        plan += ["crash"] * self.crashes + ["cut"] * self.cuts + ["restart"] * self.restarts
        rng.shuffle(plan)
        time.sleep(1.0)
        for blow in plan:
            if time.monotonic() > until:
                self.problems.append(f"out of time: {len(self.killed)} of {self.kills} killed, {len(self.frozen)} of {self.freezes} frozen")
                break
            self._wait(running, rng.uniform(0.1, 0.9))
            self._look_after(running, publishing)
            if blow == "publisher":
                victim = rng.choice(publishing)
                victim.popen.kill()
                victim.popen.wait()
                publishing[publishing.index(victim)] = self._publisher(victim.slot - PUBLISHER_SLOT)
                continue
            if blow == "crash":
                self._crash()
                continue
            if blow == "cut":
                self._cut()
                continue
            victim = self._aim(running)
            if blow == "restart":
                victim.popen.send_signal(signal.SIGTERM)
                until_ended = time.monotonic() + PATIENCE_SECONDS
                while victim.popen.poll() is None and time.monotonic() < until_ended:
                    self._wait(running, 0.05)  # who stands still with the file is continued meanwhile
                self._end(victim, "a worker", 0.1)
                running[running.index(victim)] = self._worker(victim.slot)
                self.restarted += 1
                continue
            outage = Outage(victim.pid, time.monotonic(), self._halt(victim))
            if blow == "kill":
                victim.popen.kill()
                victim.popen.wait()
                outage.until = time.monotonic()
                self.killed.append(outage)
                running[running.index(victim)] = self._worker(victim.slot)
            else:
                self.frozen.append(outage)
                victim.thaw = time.monotonic() + self.lease * rng.uniform(1.3, 2.5)
        while any(process.thaw for process in running):
            self._wait(running, 0.1)

    def _crash(self) -> None:
        """The server loses what it had not written: told to by a signal, or because a backend of it is killed."""
        assert self.server is not None
        down = Outage(-1, time.monotonic(), -1)
        if self.rng.random() < 0.7:
            self.server.restart("immediate")
        else:
            conn = self.direct.connect()
            os.kill(conn.info.backend_pid, signal.SIGKILL)
            try:
                conn.execute("SELECT pg_sleep(60)")
            except psycopg.OperationalError:  # the server has seen it
                conn.close()
            self._connected().close()
        down.until = time.monotonic() + self.lease  # who could not renew in time is without his lanes for a while longer
        self.downs.append(down)

    def _connected(self) -> Any:
        """A connection, as soon as the server gives one."""
        until = time.monotonic() + 30
        while True:
            try:
                return self.direct.connect()
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _cut(self) -> None:
        """End some connections, if possible in the middle of something."""
        with closing(self._connected()) as conn:
            rows = conn.execute(
                "SELECT pid, application_name, state <> 'idle' FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
            ).fetchall()
            self.rng.shuffle(rows)
            rows.sort(key=lambda row: not row[2])
            for pid, name, _ in rows[: self.rng.randint(1, 4)]:
                conn.execute("SELECT pg_terminate_backend(%s)", (pid,))
                self.cut[name] += 1

    def _aim(self, running: list[Process]) -> Process:
        """A worker that stands up and has had time to take lanes; most of the time one that is at a phase chosen beforehand."""
        wanted = self.rng.choice((None, 1, 2, 2, 3, 3, 4, 4))
        began = time.monotonic()
        until = began + (0.4 if wanted else 0.0)
        while time.monotonic() < began + PATIENCE_SECONDS:
            upright = [process for process in running if not process.thaw]
            grown = [process for process in upright if self._ready(process) and time.monotonic() - process.born > 1.0]
            for process in self.rng.sample(grown, len(grown)):
                if wanted is None or self.phases.landed(process.slot) == wanted:
                    return process
            if grown and time.monotonic() > until:  # then one that is at work at all
                working = [process for process in grown if wanted is None or self.phases.landed(process.slot) != IDLE]
                if working or time.monotonic() > until + 1.0:
                    return self.rng.choice(working or grown)
            self._thaw(running)
            time.sleep(0 if grown else 0.02)
        raise TimeoutError(f"no worker was ready within {PATIENCE_SECONDS} s; see {self.folder / 'errors'}")

    def _halt(self, process: Process) -> int:
        """Stop it and see where; the phase it stands in."""
        os.kill(process.pid, signal.SIGSTOP)
        while Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "TZ":
            time.sleep(0.0002)
        return self.phases.landed(process.slot)

    def _thaw(self, running: list[Process], *, all_of_them: bool = False) -> None:
        for process in running:
            if process.thaw and (all_of_them or time.monotonic() > process.thaw):
                os.kill(process.pid, signal.SIGCONT)
                process.thaw = 0.0
                outage = next(outage for outage in reversed(self.frozen) if outage.pid == process.pid)
                outage.until = time.monotonic()

    def _wait(self, running: list[Process], seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self._thaw(running)
            time.sleep(min(0.05, left))

    def _look_after(self, running: list[Process], publishing: list[Process]) -> None:
        """Nobody may end by himself."""
        for processes, what in ((running, "a worker"), (publishing, "a publisher")):
            for place, process in enumerate(processes):
                if (code := process.popen.poll()) is not None:
                    self.problems.append(f"{what} ended by itself with {code}; see {self.folder / 'errors'}")
                    processes[place] = self._worker(process.slot) if what == "a worker" else self._publisher(process.slot - PUBLISHER_SLOT)

    def _settle(self, running: list[Process]) -> None:
        """Until every lane has passed the end of the log and nothing is parked. Bounded: what stands still for 30 s will not move."""
        last, since = None, time.monotonic()
        while True:
            left = verdict.unsettled(self.db)
            if left == (0, 0, 0):
                return
            if left != last:
                last, since = left, time.monotonic()
            if time.monotonic() - since > 30:
                self.problems.append("stands still: {} lanes behind, {} events open, {} parked".format(*left))
                return
            time.sleep(0.1)
