"""One intake as a process, until it is killed: ``python -m tests.storm.taker STORE-URL KAFKA-ADDRESS TOPIC NAME``."""

from __future__ import annotations

import sys
import threading
import time

from tidings import StoreError
from tidings.brokers.kafka import KafkaBroker
from tidings.relay import intake
from tidings.store import store_at


def main() -> None:
    url, address, topic, name = sys.argv[1:]
    intake.LOOK_SECONDS = 0.5
    store = store_at(url)
    store.transactions(None, 3.0)  # a transaction of a process that stands still is ended after this time
    while True:
        try:
            store.open()
            break
        except StoreError:  # it was just crashed
            time.sleep(0.1)
    running = intake.RunningIntake(intake.Intake(batch=100), store, KafkaBroker(address), "payment", [topic], name, {"payment"})
    while True:
        try:
            running.start()
            break
        except StoreError:
            time.sleep(0.1)
    print("runs", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
