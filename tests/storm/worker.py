"""A worker process: ``python -m tests.storm.worker FOLDER SLOT SEED LEASE``."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tests.storm import service
from tests.storm.phases import Phases


def main(folder: Path, slot: int, seed: int, lease: float) -> None:
    logging.basicConfig(filename=folder / "workers.log", format="%(asctime)s %(process)d %(name)s %(message)s", level=logging.WARNING)
    phases = Phases(folder / "phases", slot)
    phases.watch_commits()
    app = service.make(folder / "storm.db", lease=lease)
    service.subscribe(app, phases, folder / "calls", seed)
    app.run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
