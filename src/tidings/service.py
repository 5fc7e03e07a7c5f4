"""One lifecycle for everything that runs: start, serve, stop."""

from __future__ import annotations

from typing import Protocol


class Service(Protocol):
    """Started once, stopped once. ``stop`` drains: what has begun is ended, what was promised is written."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...
