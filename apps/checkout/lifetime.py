"""How the shop's own small processes begin and end: one line of JSON when ready, and a stop that is noticed in time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from typing import Any


def say_ready(facts: Any) -> None:
    """Tell whoever started this process that it serves, and where."""
    print(json.dumps(facts), flush=True)


def stop_when_told(stop: asyncio.Event) -> None:
    """Set ``stop`` on SIGTERM, on Ctrl-C, and when whoever started this process is gone (it holds the other end of stdin)."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def wait_for_end() -> None:
        while os.read(0, 4096):  # not sys.stdin: its lock would be held by this thread when the interpreter ends
            pass
        loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=wait_for_end, daemon=True).start()
