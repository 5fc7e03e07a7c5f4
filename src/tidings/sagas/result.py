"""Awaiting what a saga returned, from any process: whoever waits is woken as readers of the log are, and one question asks for all."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import Awaitable, Callable, Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import msgspec

from ..codec import decode_json
from ..errors import NotFound, NotInTime, SagaDefinitionError, SagaError, SagaFailed, SagaParked
from .step import RESULT_BYTES, annotation, encode

if TYPE_CHECKING:
    from ..store.port import SomeWaker, Store

POLL_SECONDS = 2.0
"""The store is asked this often when nothing else tells."""
PAUSE_SECONDS = 0.002
"""And no more often than this."""

Asked = tuple[str, str]
Ended = tuple[str, str | None, str | None]
"""State, result, error."""


class Watch:
    """Those who wait for sagas of one store, on one loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Asked, list[asyncio.Future[Ended]]] = {}
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def wait(self, asked: Asked, seconds: float | None) -> Ended | None:
        """How it ended, or why it is parked; None: not in time."""
        future: asyncio.Future[Ended] = self._loop.create_future()
        self._waiting.setdefault(asked, []).append(future)
        self._woken.set()
        if self._task is None:
            self._task = self._loop.create_task(self._run(), name="tidings-results")
        try:
            await asyncio.wait([future], timeout=seconds)
            return future.result() if future.done() else None
        finally:
            left = self._waiting[asked]
            left.remove(future)
            if not left:
                del self._waiting[asked]
            if not self._waiting and self._task is not None:
                task, self._task = self._task, None
                task.cancel()
                await asyncio.wait([task])
                if task.done() and not task.cancelled():
                    task.exception()

    async def _run(self) -> None:
        waker: SomeWaker = self._store.watch(self._woken.set)

        def committed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._woken.set)

        self._store.on_commit(committed)
        try:
            while True:
                self._woken.clear()
                waker.arm()
                asked = list(self._waiting)
                try:
                    found = await self._loop.run_in_executor(None, self._store.query, lambda unit, asked=asked: unit.sagas().ended(asked))
                except Exception as error:
                    for future in (one for waiting in self._waiting.values() for one in waiting if not one.done()):
                        future.set_exception(error)
                    return
                for saga, key, *ended in found:
                    for future in self._waiting.get((saga, key), ()):
                        if not future.done():
                            future.set_result((ended[0], ended[1], ended[2]))
                await asyncio.sleep(PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self._woken.wait()
        finally:
            self._store.off_commit(committed)
            waker.disarm()
            self._loop.run_in_executor(None, waker.close)


class Watches:
    """One for each loop."""

    def __init__(self) -> None:
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, tuple[Store, Watch]] = WeakKeyDictionary()

    def on(self, store: Store) -> Watch:
        loop = asyncio.get_running_loop()
        found = self._by_loop.get(loop)
        if found is None or found[0] is not store or found[1]._task is None:
            found = self._by_loop[loop] = (store, Watch(store))
        return found[1]


class Result(Awaitable[Any]):
    """What a saga returned, or will: await it, or call ``result()`` from a thread without a loop."""

    def __init__(self, watch: Callable[[], Watch], asked: Asked, decode: Callable[[bytes], Any], seconds: float | None) -> None:
        self._watch = watch
        self._asked = asked
        self._decode = decode
        self._seconds = seconds

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()

    def result(self) -> Any:
        """Block until it is there.

        Raises:
            SagaError: on a loop, which it would block: await it there.
        """
        if asyncio._get_running_loop() is not None:
            raise SagaError("saga_result(…).result() would block the loop that runs here: await it instead, await app.saga_result(…)")
        return asyncio.run(self._wait())

    async def _wait(self) -> Any:
        saga, key = self._asked
        began = time.monotonic()
        ended = await self._watch().wait(self._asked, self._seconds)
        if ended is None:
            raise NotInTime(f"{saga} {key} hasn't ended within {time.monotonic() - began:.3g} s", saga=saga, key=key)
        return told(saga, key, ended, self._decode)


def told(saga: str, key: str, ended: Ended, decode: Callable[[bytes], Any]) -> Any:
    """What it returned.

    Raises:
        SagaFailed: it was compensated or cancelled. SagaParked: its code doesn't fit. NotFound: it is gone after its retention.
    """
    state, result, error = ended
    if state == "completed":
        return None if result is None else decode(result.encode())
    if state == "gone":
        raise NotFound(f"{saga} {key} ended so long ago that its result is gone (App(retention=…))", name=saga, key=key)
    if state == "parked":
        raise SagaParked(f"{saga} {key} is parked: {error}", saga=saga, key=key, error=error)
    raise SagaFailed(f"{saga} {key} is {state}: {error}", saga=saga, key=key, state=state, error=error)


@lru_cache(maxsize=1024)
def decoder_of(main: Callable[..., Any]) -> Callable[[bytes], Any]:
    """By the annotation of what a body returns."""
    returns = annotation(main, inspect.signature(main).return_annotation)
    if returns in (inspect.Signature.empty, None, Any):
        return decode_json
    try:
        return msgspec.json.Decoder(returns).decode
    except TypeError as error:
        raise SagaDefinitionError(f"{main.__name__} returns {returns}, which can't be kept: {error}") from error


def stored(main: Callable[..., Any], value: Any) -> str | None:
    """What a body returned, as it is kept.

    Raises:
        SagaDefinitionError
    """
    if value is None:
        return None
    name = main.__name__
    try:
        data = encode(value)
        decoder_of(main)(data)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise SagaDefinitionError(
            f"{name} returned {type(value).__name__}, which can't be kept ({error}): return plain values, a dataclass or a Struct, and say"
            " so in its annotation"
        ) from error
    if len(data) > RESULT_BYTES:
        raise SagaDefinitionError(f"{name} returned {len(data):,} bytes of JSON; a result may have {RESULT_BYTES:,}")
    return data.decode()
