"""A handler's transaction under way: what is the same on every store."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ..errors import HandlerDefinitionError, HandlerTimeout

Raw = TypeVar("Raw")
Guarding = TypeVar("Guarding")


class OpenTransaction(Generic[Raw, Guarding]):
    """Of synchronous handlers, in the thread that runs them.

    Attributes:
        tx: for the handler. raw: for Tidings' own statements. guard: around the handler.
        savepoint: makes a context manager; an error inside undoes what was done inside.
        after: called behind the commit, in the order of the commits. told: something was published in it.
    """

    def __init__(self, tx: Any, raw: Raw, guard: Guarding, savepoint: Callable[[], Any]) -> None:
        self.tx = tx
        self.raw = raw
        self.guard = guard
        self.savepoint = savepoint
        self.flushes = hasattr(tx, "flush")
        self.after: list[Callable[[], None]] = []
        self.told = False
        self.aborted = False
        self._settling = False
        self._lock = threading.Lock()

    def flush(self) -> None:
        """Let an ORM session write what it holds."""
        if self.flushes:
            self.tx.flush()

    def settle(self) -> None:
        """The handlers are done, the commit follows: too late for ``abort``, or abort was first.

        Raises:
            HandlerTimeout: it was aborted meanwhile.
        """
        with self._lock:
            if self.aborted:
                raise HandlerTimeout("given up while the handler ran")
            self._settling = True

    def abort(self) -> bool:
        """Give it up from another thread; False if it is being committed, or was given up before."""
        with self._lock:
            if self.aborted or self._settling:
                return False
            self.aborted = True
            return True


class OpenAsyncTransaction(Generic[Raw, Guarding]):
    """Of an async handler: ``await run(work)`` runs ``work(raw)`` in it."""

    def __init__(self, tx: Any, run: Callable[[Callable[[Raw], Any]], Any], guard: Guarding) -> None:
        self.tx = tx
        self.run = run
        self.guard = guard
        self.after: list[Callable[[], None]] = []
        self.told = False


def sqlalchemy_source(given: Sequence[Any], kind: str, handler: str) -> Any:
    """What makes a SQLAlchemy transaction of this kind, among what ``App(transactions=…)`` was given: an engine, or a maker of sessions.

    Raises:
        HandlerDefinitionError: nothing does.
    """
    wants_async = kind.startswith("async")
    for one in given:
        name = f"{type(one).__module__}.{type(one).__name__}"
        if not name.startswith("sqlalchemy.") or name.startswith("sqlalchemy.ext.asyncio") != wants_async:
            continue
        is_maker = "sessionmaker" in name
        if kind.endswith("session"):
            return one if is_maker else _sessions_of(one, wants_async)
        return one.kw["bind"] if is_maker else one
    prefix = "async_" if wants_async else ""
    raise HandlerDefinitionError(
        f"{handler} asks for a SQLAlchemy {kind}: say where it comes from with App(…, transactions={prefix}engine or {prefix}sessionmaker)",
        handler=handler,
    )


def _sessions_of(engine: Any, is_async: bool) -> Any:
    if is_async:
        from sqlalchemy.ext.asyncio import async_sessionmaker

        return async_sessionmaker(engine, expire_on_commit=False)
    from sqlalchemy.orm import sessionmaker

    return sessionmaker(engine)
