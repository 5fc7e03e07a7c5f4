"""A worker process: ``python -m tests.storm.worker FOLDER SLOT SEED LEASE``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.storm import service
from tests.storm.phases import Phases
from tidings.app import serve
from tidings.subscribe.worker import Worker


def main(folder: Path, slot: int, seed: int, lease: float) -> None:
    logging.basicConfig(filename=folder / "workers.log", format="%(asctime)s %(process)d %(name)s %(message)s", level=logging.WARNING)
    phases = Phases(folder / "phases", slot)
    phases.watch_commits()
    app = service.make(folder / "storm.db", lease=lease)
    service.subscribe(app, phases, folder / "calls", seed)
    tell_late_renewals(folder / "late")
    asyncio.run(serve([app], ready=(folder / f"ready-{os.getpid()}").touch))


def tell_late_renewals(path: Path) -> None:
    """Write down when this process's lease ran out though nobody had stopped it: on few cores, with everybody at one file, it happens."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    renew = Worker._renew
    held_until = float("inf")

    def renewing(self: Worker, unit: Any, until: float, info: dict[str, Any]) -> bool:
        nonlocal held_until
        now = time.monotonic()
        if now > held_until:
            os.write(file, f"{os.getpid()} {held_until:.6f} {now:.6f}\n".encode())
        held_until = until
        return renew(self, unit, until, info)

    Worker._renew = renewing  # type: ignore[method-assign]


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
