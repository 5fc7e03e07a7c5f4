"""What both ways of reading an outbox share: a thread, a queue of a few batches, and the error that it ended with."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence

from ..outbox import Batch, Row

BATCH_BYTES = 8 * 1024 * 1024
"""A batch ends here, or at its number of rows, whichever comes first."""
DEPTH = 2
"""So many batches are read ahead of the one that is being sent."""


def weight(row: Row) -> int:
    """Bytes that a row's record takes, more or less."""
    return 300 + sum([len(cell) for cell in row if cell])


def unhexed(cells: Row, binary: Sequence[int]) -> Row:
    """A row with the bytes themselves where the server wrote them as a text (bytea_output is hex)."""
    raw = list(cells)
    for at in binary:
        if (cell := raw[at]) is not None:
            raw[at] = bytes.fromhex(cell[2:].decode())
    return raw


class Threaded:
    """A source's thread and what it hands over: a queue of a few batches, and the error that it ended with."""

    def __init__(self, name: str) -> None:
        self._batches: queue.Queue[Batch] = queue.Queue(DEPTH)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._open = 0  # batches that were read and are not ticked off
        self._lock = threading.Condition()
        self._thread = threading.Thread(target=self._main, name=f"tidings-{name}", daemon=True)

    def take(self, seconds: float) -> Batch | None:
        try:
            return self._batches.get(timeout=0 if self._failure is not None or not self._thread.is_alive() else seconds)
        except queue.Empty:
            pass
        if self._failure is not None:
            raise self._failure  # with its cause, which says whether waiting helps
        return None

    def sent(self, batch: Batch) -> None:
        with self._lock:
            self._open -= 1
            self._lock.notify_all()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def close(self) -> None:
        self._stop.set()
        with self._lock:
            self._lock.notify_all()
        while self._thread.is_alive():  # it may be waiting for room
            try:
                self._batches.get_nowait()
            except queue.Empty:
                pass
            self._thread.join(0.01)

    def _main(self) -> None:
        try:
            self._read()
        except BaseException as error:
            self._failure = error

    def _read(self) -> None:
        raise NotImplementedError

    def _give(self, batch: Batch) -> bool:
        """Hand it over; False if it is no longer wanted."""
        with self._lock:
            self._open += 1
        while not self._stop.is_set():
            try:
                self._batches.put(batch, timeout=0.1)
                return True
            except queue.Full:
                continue
        with self._lock:
            self._open -= 1
        return False

    def _settled(self) -> bool:
        """Wait until all that was read has been ticked off; False if that is no longer wanted."""
        with self._lock:
            while self._open and not self._stop.is_set():
                self._lock.wait(0.2)
        return not self._stop.is_set()
