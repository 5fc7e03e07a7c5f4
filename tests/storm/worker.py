"""A worker process: ``python -m tests.storm.worker FOLDER SLOT SEED LEASE``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tests.storm import database, service
from tests.storm.phases import Phases
from tidings.app import serve
from tidings.errors import StoreError
from tidings.subscribe.checkpointing import Checkpointing, Committed
from tidings.subscribe.runner import Runner
from tidings.subscribe.worker import Worker


def main(folder: Path, slot: int, seed: int, lease: float) -> None:
    logging.basicConfig(filename=folder / "workers.log", format="%(asctime)s %(process)d %(name)s %(message)s", level=logging.WARNING)
    phases = Phases(folder / "phases", slot)
    phases.watch_commits()
    renewed = tell_renewals(folder / "renewals")
    tell_checkpoints(folder / "checkpoints")
    ready = folder / f"ready-{os.getpid()}"
    while True:
        db = database.of(folder)
        app = service.make(db, lease=lease)
        service.subscribe(app, db, phases, folder / "calls", seed)
        try:
            asyncio.run(serve([app], ready=ready.touch))
        except StoreError:
            if ready.exists():
                raise
            time.sleep(0.2)  # born while the server was down: whoever keeps processes would start it again
        else:
            renewed(time.monotonic())
            return


def tell_renewals(path: Path) -> Callable[[float], None]:
    """Write down each renewal of this process's lease and how long it holds: on few cores, with everybody at one file, one may be late.

    What is returned writes another line: the process's end, by when it may be over too.
    """
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    renew, leased, prolonged = Worker._renew, Runner.leased, Runner.prolonged

    def tell(until: float) -> None:
        os.write(file, f"{os.getpid()} {time.monotonic():.6f} {until:.6f}\n".encode())

    def renewing(self: Worker, unit: Any, until: float, info: dict[str, Any]) -> bool:
        tell(until)
        return renew(self, unit, until, info)

    def was_leased(self: Runner, until: float) -> None:
        if self.name == "outside":
            tell(until)
        leased(self, until)

    def was_prolonged(self: Runner, until: float) -> None:
        if self.name == "outside":
            tell(until)
        prolonged(self, until)

    Worker._renew = renewing  # type: ignore[method-assign]
    Runner.leased = was_leased  # type: ignore[method-assign]
    Runner.prolonged = was_prolonged  # type: ignore[method-assign]
    return tell


def tell_checkpoints(path: Path) -> None:
    """Write down when checkpoints of what calls outside were handed to the store, and when it answered: that takes as long as it takes."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    flush, flushed = Checkpointing.flush, Checkpointing._flushed

    def tell(self: Checkpointing, what: str) -> None:
        if self._name == "outside":
            os.write(file, f"{what} {os.getpid()} {time.monotonic():.6f}\n".encode())

    def flushing(self: Checkpointing) -> None:
        before = self.writes
        flush(self)
        if self.writes and not before:
            tell(self, "begin")

    def answered(self: Checkpointing, batch: Any, lanes: Any, future: Future[Committed]) -> None:
        tell(self, "end" if future.exception() is None else "failed")
        flushed(self, batch, lanes, future)

    Checkpointing.flush = flushing  # type: ignore[method-assign]
    Checkpointing._flushed = answered  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
