"""One intake as a process, until it is killed: ``python -m tests.storm.taker STORE-URL KAFKA-ADDRESS TOPIC NAME``."""

from __future__ import annotations

import sys
import threading

from tidings.brokers.kafka import KafkaBroker
from tidings.relay import intake
from tidings.store import store_at


def main() -> None:
    url, address, topic, name = sys.argv[1:]
    intake.LOOK_SECONDS = 0.5
    store = store_at(url)
    store.transactions(None, 3.0)  # a transaction of a process that stands still is ended after this time
    store.open()
    running = intake.RunningIntake(intake.Intake(batch=100), store, KafkaBroker(address), "payment", [topic], name, {"payment"})
    running.start()
    print("runs", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
