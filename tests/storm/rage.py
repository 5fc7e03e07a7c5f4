"""Processes of one kind under fire: killed, frozen past their lease and woken, beside a database that crashes and cuts connections."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from servers.postgres import Postgres
from tests.promises import ROOT
from tests.storm import database
from tidings import PostgresStore, SQLiteStore


@dataclass
class Rage:
    """
    Args:
        seed: decides who is hit, when and how. kills, freezes: of processes. restarts: of processes that are asked to end, as in a deploy.
        crashes, cuts: of the database's server and its connections.
        what: the processes are called. log: a file in the folder that they write to. replacing: blows that kill one and begin another.
    """

    folder: Path
    seed: int
    kills: int = 10
    freezes: int = 4
    restarts: int = 3
    crashes: int = 2
    cuts: int = 3
    lease: float = 1.5
    what: str = "worker"
    log: str = "workers.log"
    replacing: tuple[str, ...] = ("kill",)
    done: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    server: Postgres | None = None

    def begin(self) -> subprocess.Popen[bytes]:
        """Start one more of the processes."""
        raise NotImplementedError

    def blow(self, kind: str) -> None:
        """One that is none of those here."""
        raise NotImplementedError

    def hit(self, kind: str, victim: subprocess.Popen[bytes]) -> None:
        """It stands still, frozen or about to be killed; or it is about to be asked to end."""

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / "errors").open("ab") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self.folder), *arguments],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stderr=errors,
            )

    def ready(self, process: subprocess.Popen[bytes]) -> bool:
        return (self.folder / f"ready-{process.pid}").exists()

    def end(self, process: subprocess.Popen[bytes], what: str, seconds: float = 60) -> None:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{what} did not end when it was asked to")
            self.say_last_words()
            return
        # One that was still starting knew nothing of signals yet, and had begun nothing.
        if code != 0 and not (code == -signal.SIGTERM and not self.ready(process)):
            self.problems.append(f"{what} ended with {code}; see {self.folder / 'errors'}")

    def rage(self, rng: random.Random, running: list[subprocess.Popen[bytes]], more: list[str]) -> None:
        """Do all of it, in an order of its own for each seed. ``more``: blows of ``blow``."""
        plan = ["kill"] * self.kills + ["freeze"] * self.freezes + ["restart"] * self.restarts + more
        if self.server is not None:
            plan += ["crash"] * self.crashes + ["cut"] * self.cuts
        rng.shuffle(plan)
        frozen: dict[int, float] = {}
        for kind in plan:
            until = time.monotonic() + rng.uniform(0.3, 1.5)
            while time.monotonic() < until:
                self._thaw(frozen)
                time.sleep(0.02)
            for place, process in enumerate(running):
                if (code := process.poll()) is not None:
                    self.problems.append(f"a {self.what} ended by itself with {code}; see {self.folder / 'errors'}")
                    running[place] = self.begin()
            if kind == "crash":
                assert self.server is not None
                self.server.restart("immediate")
            elif kind == "cut":
                self._cut()
            elif kind in ("freeze", "restart", *self.replacing):
                patience = time.monotonic() + 30
                while not (grown := [one for one in running if self.ready(one) and one.pid not in frozen]):
                    self._thaw(frozen)
                    time.sleep(0.05)
                    if time.monotonic() > patience:
                        break
                if not grown:
                    self.problems.append(f"no {self.what} was ready within 30 s")
                    continue
                victim = rng.choice(grown)
                if kind != "restart":
                    victim.send_signal(signal.SIGSTOP)
                self.hit(kind, victim)
                if kind == "restart":
                    victim.send_signal(signal.SIGTERM)
                    until = time.monotonic() + 60
                    while victim.poll() is None and time.monotonic() < until:
                        self._thaw(frozen)  # one that stands still may have the file
                        time.sleep(0.02)
                    self.end(victim, f"a {self.what}", 0.1)
                    running[running.index(victim)] = self.begin()
                elif kind == "freeze":
                    frozen[victim.pid] = time.monotonic() + self.lease * rng.uniform(1.3, 3.0)
                else:
                    victim.kill()
                    victim.wait()
                    running[running.index(victim)] = self.begin()
            else:
                self.blow(kind)
            self.done[kind] += 1
        while frozen:
            self._thaw(frozen)
            time.sleep(0.02)

    def _thaw(self, frozen: dict[int, float]) -> None:
        for pid, when in list(frozen.items()):
            if time.monotonic() > when:
                del frozen[pid]
                os.kill(pid, signal.SIGCONT)

    def _cut(self) -> None:
        try:
            with database.connected(database.of(self.folder)) as conn:
                conn.execute(
                    "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid <> pg_backend_pid() AND application_name LIKE 'tidings%' ORDER BY random() LIMIT 3) few"
                )
        except psycopg.OperationalError:
            return

    def store(self) -> PostgresStore | SQLiteStore:
        url = database.of(self.folder).url
        return SQLiteStore(url) if self.server is None else PostgresStore(url)

    def say_last_words(self) -> None:
        """The folder may be gone when somebody wants to know."""
        path = self.folder / self.log
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        print(f"the last of {self.log}:", *lines[-40:], sep="\n  ", flush=True)
