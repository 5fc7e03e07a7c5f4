"""Just enough HTTP/1.1 for services that talk to each other over loopback: keep-alive, JSON bodies, an idempotency key.

The demonstration makes some thirty thousand requests within a minute on two cores, most of them from handlers, so a request has to
cost some tens of microseconds. Nothing here is meant for the open network: servers bind to loopback only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec

LOOPBACK = "127.0.0.1"
_REASONS = {200: "OK", 201: "Created", 202: "Accepted", 400: "Bad Request", 402: "Payment Required", 404: "Not Found", 409: "Conflict"}
_MOST_BYTES = 64 * 1024


class Request(NamedTuple):
    """A request as it arrived; ``body`` is decoded JSON, None where there is none."""

    method: str
    path: str
    key: str | None
    body: Any


class Response(NamedTuple):
    """A status and what goes out as JSON."""

    status: int
    body: Any = None


Handle = Callable[[Request], Awaitable[Response]]


class Refused(ConnectionError):
    """The other side answered with an error of its own (5xx), or not at all."""


class Unreachable(Refused):
    """Nobody listens there, so the request certainly had no effect."""


def _head_and_body(buffer: bytearray) -> tuple[list[bytes], bytes] | None:
    """Cut one whole request or response off the front of ``buffer``; None while it isn't complete."""
    end = buffer.find(b"\r\n\r\n")
    if end < 0:
        if len(buffer) > _MOST_BYTES:
            raise ValueError("head too large")
        return None
    lines = bytes(buffer[:end]).split(b"\r\n")
    length = 0
    for line in lines[1:]:
        if line[:15].lower() == b"content-length:":
            length = int(line[15:])
    if length > _MOST_BYTES:
        raise ValueError("body too large")
    start = end + 4
    if len(buffer) < start + length:
        return None
    body = bytes(buffer[start : start + length])
    del buffer[: start + length]
    return lines, body


class _Serving(asyncio.Protocol):
    """One connection of a client: requests are answered one after another."""

    def __init__(self, handle: Handle, live: set[_Serving]) -> None:
        self._handle = handle
        self._live = live
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._live.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._live.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._task is None:
            self._next()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _next(self) -> None:
        try:
            parts = _head_and_body(self._buffer)
            request = None if parts is None else _request(*parts)
        except (ValueError, msgspec.DecodeError):
            self._send(Response(400, {"error": "this is not a request"}))
            if self._transport is not None:
                self._transport.close()  # after what was sent; nothing that follows can be understood
            return
        if request is not None:
            self._task = asyncio.get_running_loop().create_task(self._answer(request))

    async def _answer(self, request: Request) -> None:
        try:
            response = await self._handle(request)
        except Exception as error:
            response = Response(500, {"error": f"{type(error).__name__}: {error}"})
        self._send(response)
        self._task = None
        if self._buffer:
            self._next()

    def _send(self, response: Response) -> None:
        if self._transport is None:
            return  # the client has gone; what was done stays done
        body = msgspec.json.encode(response.body)
        reason = _REASONS.get(response.status, "Error")
        head = f"HTTP/1.1 {response.status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)


def _request(lines: list[bytes], body: bytes) -> Request:
    method, path, _ = lines[0].decode("latin-1").split(" ", 2)
    key = None
    for line in lines[1:]:
        if line[:16].lower() == b"idempotency-key:":
            key = line[16:].strip().decode("latin-1")
    return Request(method, path, key, msgspec.json.decode(body) if body else None)


class Server:
    """Serves ``handle`` on a loopback port; ``port`` 0 takes a free one."""

    def __init__(self, handle: Handle, port: int = 0) -> None:
        self._handle = handle
        self._wanted = port
        self._live: set[_Serving] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Serving(self._handle, self._live), LOOPBACK, self._wanted, backlog=512)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._live):
            connection.close()
        await asyncio.sleep(0)


class _Calling(asyncio.Protocol):
    """One connection to a server: one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[tuple[int, bytes]] | None = None
        self.deadline = 0.0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._fail(Refused("connection lost before the answer"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            parts = _head_and_body(self._buffer)
        except ValueError as error:
            self.close()
            self._fail(Refused(str(error)))
            return
        if parts is not None and self._waiter is not None and not self._waiter.done():
            lines, body = parts
            self._waiter.set_result((int(lines[0].split(b" ", 2)[1]), body))

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        if self._transport is None:
            raise Refused("connection lost")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            self._transport.write(request)
            return await self._waiter
        except BaseException:
            self.close()  # an answer that comes later must not be taken for the next request's
            raise
        finally:
            self._waiter = None

    def give_up(self, timeout: float) -> None:
        self._fail(Refused(f"no answer within {timeout:g} s"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    def _fail(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)


class Client:
    """Calls one server over connections that it keeps. Belongs to the event loop that first uses it."""

    def __init__(self, address: str, *, timeout: float = 5.0) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host or LOOPBACK, int(port)
        self._timeout = timeout
        self._idle: deque[_Calling] = deque()
        self._calling: set[_Calling] = set()
        self._look: asyncio.TimerHandle | None = None

    async def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> Response:
        """Send a request and wait for its answer.

        Raises:
            Unreachable: nobody listens; nothing happened.
            Refused: the connection broke, no answer came in time, or the answer was a 5xx. Whether the request took effect is then
                unknown: send it again with the same ``key``.
        """
        data = b"" if body is None else msgspec.json.encode(body)
        name = f"Idempotency-Key: {key}\r\n" if key else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{name}Content-Length: {len(data)}\r\n\r\n"
        connection = await self._connection()
        self._watch(connection)
        try:
            status, raw = await connection.exchange(head.encode() + data)
        finally:
            self._calling.discard(connection)
        self._idle.append(connection)
        answer = Response(status, msgspec.json.decode(raw) if raw else None)
        if status >= 500:
            raise Refused(f"{method} {path}: {status} {answer.body}")
        return answer

    def _watch(self, connection: _Calling) -> None:
        """One timer for all requests under way, late by a quarter of the time limit at worst: one for each costs as much as sending it."""
        loop = asyncio.get_running_loop()
        connection.deadline = loop.time() + self._timeout
        self._calling.add(connection)
        if self._look is None:
            self._look = loop.call_later(self._timeout / 4, self._look_around, loop)

    def _look_around(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in self._calling:
            if connection.deadline <= now:
                connection.give_up(self._timeout)
        self._look = loop.call_later(self._timeout / 4, self._look_around, loop) if self._calling else None

    async def _connection(self) -> _Calling:
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        try:
            _, protocol = await asyncio.get_running_loop().create_connection(_Calling, self._host, self._port)
        except OSError as error:
            raise Unreachable(f"nobody listens on {self._host}:{self._port}") from error
        return protocol

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
        while self._idle:
            self._idle.pop().close()
