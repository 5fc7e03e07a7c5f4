"""Steps that ask for a transaction, on a store whose transactions take turns anyway: steps of several instances share one, and one sync.

Each stands behind a savepoint with its journal entry, so one that fails undoes only itself. If the commit fails, each is done again alone.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import Fenced, StoreError
from ..store.sagas import Entry

if TYPE_CHECKING:
    from ..store.port import SomeTransactions, Store, Transaction
    from .step import Function, StepContext

SIZE = 64
SECONDS = 0.02
"""A shared transaction ends after so many steps or so much time: publishers wait for it."""


@dataclass(slots=True, eq=False)
class SharedStep:
    """One attempt. ``call``: the function. ``finish``: makes the entry of what it returned and writes it, with what was published; whether
    something was."""

    function: Function
    ctx: StepContext
    call: Callable[[], Any]
    finish: Callable[[Any, Transaction], tuple[Entry, bool]]
    future: asyncio.Future[Entry]


class SharedSteps:
    """Runs them in a thread, one after another."""

    def __init__(self, store: Store, transactions: SomeTransactions) -> None:
        self._store = store
        self._transactions = transactions
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tidings-saga-tx")
        self._queue: deque[SharedStep] = deque()
        self._lock = threading.Lock()
        self._working = False

    @staticmethod
    def takes(function: Function, timeout: float | None) -> bool:
        """Not one that may have to be broken off, nor one in an ORM's session, which remembers objects."""
        return timeout is None and function.tx is not None and function.tx != "session"

    def put(self, step: SharedStep) -> None:
        with self._lock:
            self._queue.append(step)
            if self._working:
                return
            self._working = True
        self._thread.submit(self._work)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    # -- in the thread

    def _work(self) -> None:
        while True:
            with self._lock:
                batch = self._next()
                if not batch:
                    self._working = False
                    return
            rest = self._share(batch)
            if rest:
                with self._lock:
                    self._queue.extendleft(reversed(rest))

    def _next(self) -> list[SharedStep]:
        batch: list[SharedStep] = []
        queue = self._queue
        while queue and len(batch) < SIZE and (not batch or queue[0].function.tx == batch[0].function.tx):
            step = queue.popleft()
            if not step.future.done():  # its worker was killed
                batch.append(step)
        return batch

    def _share(self, batch: list[SharedStep]) -> list[SharedStep]:
        """One transaction; what was not begun: its time was over."""
        kind = batch[0].function.tx
        assert kind is not None
        ended: list[tuple[Entry | None, Exception | None]] = []
        try:
            with self._transactions.begin(kind) as transaction:
                until = time.monotonic() + SECONDS
                for step in batch:
                    if ended and time.monotonic() > until:
                        break
                    ended.append(self._step(step, transaction))
                transaction.settle()
                transaction.after.append(lambda: _tell(batch, ended))
        except Exception as error:
            begun = batch[: len(ended) + 1] if ended or not self._is_stores(error) else batch
            if len(begun) > 1 and not self._is_stores(error):
                for step in begun:
                    self._share([step])
            else:
                _tell(begun, [(None, error)] * len(begun))
            return batch[len(begun) :]
        return batch[len(ended) :]

    def _step(self, step: SharedStep, transaction: Transaction) -> tuple[Entry | None, Exception | None]:
        try:
            with transaction.savepoint():
                step.ctx.tx = transaction.tx
                with transaction.guard.closed(step.function.name):
                    value = step.call()
                    transaction.flush()
                entry, told = step.finish(value, transaction)
        except Fenced as error:
            return None, error
        except Exception as error:
            if transaction.aborted or not transaction.guard.alive() or self._is_stores(error):
                raise
            return None, error
        transaction.told = transaction.told or told
        return entry, None

    def _is_stores(self, error: Exception) -> bool:
        return isinstance(error, StoreError) or self._store.is_busy(error) or self._store.is_lost(error)


def _tell(batch: list[SharedStep], ended: list[tuple[Entry | None, Exception | None]]) -> None:
    """On their loop, which is one for all."""

    def settle() -> None:
        for step, (entry, error) in zip(batch, ended, strict=False):
            if step.future.done():
                continue
            if error is not None:
                step.future.set_exception(error)
            elif entry is not None:
                step.future.set_result(entry)

    try:
        batch[0].future.get_loop().call_soon_threadsafe(settle)
    except RuntimeError:  # the loop is closed: nobody waits there any more
        return
