"""The thread that writes for a process: it drains a queue of jobs and commits them in groups."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import SimpleQueue
from typing import Any, Protocol

from ..errors import StoreError

log = logging.getLogger("tidings.store")

GROUP = 1000
"""At most this many jobs are committed together."""

Tell = dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]]
"""Whom to wake in which loop when a group is done: one hop into each, and not one for each job."""


class Job(Protocol):
    """Something to be done in a transaction of the store's own. Called by the writer's thread, in this order."""

    def begin(self) -> bool:
        """False if it was withdrawn. Never called at the same time as ``Writer.withdraw``."""
        ...

    def run(self, unit: Any) -> Any:
        """Its statements; perhaps more than once, when a neighbour failed."""
        ...

    def committed(self, result: Any) -> None:
        """Still in the process's turn."""
        ...

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        """It is durable, or it failed."""
        ...


class _Call:
    """A function as a job, with a future for whoever asked."""

    __slots__ = ("after", "future", "run")

    def __init__(self, run: Callable[[Any], Any], after: Callable[[Any], None] | None) -> None:
        self.run = run
        self.after = after
        self.future: Future[Any] = Future()

    def begin(self) -> bool:
        return self.future.set_running_or_notify_cancel()

    def committed(self, result: Any) -> None:
        if self.after is not None:
            self.after(result)

    def settle(self, result: Any, error: BaseException | None, tell: Tell) -> None:
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


class Writer:
    """A thread that drains a queue of jobs and commits them in groups, in the order in which they were given.

    While one group is being synced to disk the next one gathers: that alone makes durable writes of many tasks cheap. How a group is
    committed is the store's business: ``transact``, and what its errors mean.

    Args:
        label: of the store, for messages.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._submitting = threading.Lock()
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tidings-writer", daemon=True)
        self._thread.start()

    # -- for the store

    def turn(self) -> AbstractContextManager[Any]:
        """Around each group, before it is known what is in it."""
        return nullcontext()

    def transact(self, group: list[Job]) -> list[Any]:
        """Run the jobs in one transaction and commit it: their results. Otherwise nothing of it may stay."""
        raise NotImplementedError

    def committed(self) -> None:
        """Called behind a commit, and behind the jobs' own ``committed``."""

    def again(self, error: BaseException, tries: int) -> bool:
        """Whether the same group may simply be tried again, ``tries`` times having failed. May wait."""
        return False

    def is_everybodys(self, error: BaseException) -> bool:
        """Whether it would be the same for each job alone."""
        return False

    def explain(self, error: BaseException) -> BaseException:
        """The same in words that name the fix."""
        return error

    # -- for everybody

    def submit(self, work: Callable[[Any], Any], after: Callable[[Any], None] | None = None) -> Future[Any]:
        """Queue a job; the future has its result once it is durable. ``after`` gets it first, still in the process's turn."""
        call = _Call(work, after)
        self.put(call)
        return call.future

    def put(self, job: Job) -> None:
        """Queue a job that settles by itself.

        Raises:
            StoreError: the writer was closed.
        """
        with self._submitting:
            if self.closing.is_set():
                raise StoreError("the store is closed", store=self._label)
            self._jobs.put(job)

    def withdraw(self, job: Job) -> bool:
        """Whether ``job`` was still waiting, and now is left out."""
        with self._submitting:
            return job.begin()

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._submitting:  # behind a job that is being queued, so that none is left behind
            if not self.closing.is_set():
                self._jobs.put(None)
            self.closing.set()
        self._thread.join()

    def _run(self) -> None:
        going_on = True
        while going_on:
            # Not in this method: a variable of its own would keep the last job alive while it waits for the next.
            going_on = self._next_group(self._jobs.get())

    def _next_group(self, first: Job | None) -> bool:
        """Commit what is queued; False behind the last of all."""
        if first is None:
            return False
        with self.turn():
            queued = [first, *(self._jobs.get_nowait() for _ in range(min(self._jobs.qsize(), GROUP - 1)))]
            if last := queued[-1] is None:
                queued.pop()
            with self._submitting:
                group = [job for job in queued if job is not None and job.begin()]
            if group:
                self._commit(group)
        return not last

    def _commit(self, group: list[Job], tries: int = 1) -> None:
        tell: Tell = {}
        try:
            results = self.transact(group)
        except BaseException as error:
            if self.again(error, tries):
                self._commit(group, tries + 1)
                return
            if len(group) > 1 and not self.is_everybodys(error):  # one job's error is not its neighbours': each alone
                for single in group:
                    self._commit([single])
                return
            told = self.explain(error)
            for job in group:
                job.settle(None, told, tell)
        else:
            try:
                for job, result in zip(group, results, strict=True):
                    job.committed(result)
                self.committed()
            except Exception:  # the commit stands, and this thread must go on
                log.exception("after a commit")
            for job, result in zip(group, results, strict=True):
                job.settle(result, None, tell)
        wake(tell)


def wake(tell: Tell) -> None:
    """Settle the futures, each in its loop."""
    for loop, waiting in tell.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(_settle, waiting)


def _settle(waiting: list[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)
