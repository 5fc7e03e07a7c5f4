"""A relay process: ``python -m tests.storm.relaying FOLDER KAFKA LEASE SLOTS``. Sends what the publishers of the storm publish."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

from tests.storm import database
from tidings import App, Relay
from tidings.app import serve
from tidings.errors import StoreError

ROWS = 20


def main(folder: Path, kafka: str, lease: float, slots: int) -> None:
    logging.basicConfig(filename=folder / "relays.log", format="%(asctime)s %(process)d %(name)s %(message)s", level=logging.INFO)
    ready = folder / f"ready-{os.getpid()}"
    while True:
        store = database.of(folder).url
        app = App("storm", store, broker=kafka, relay=Relay(slots=slots, rows=ROWS, partitions=6), intake=False, lease=lease)
        try:
            asyncio.run(serve([app], ready=ready.touch))
        except StoreError:
            if ready.exists():
                raise
            time.sleep(0.2)  # born while the server was down: whoever keeps processes would start it again
        else:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
