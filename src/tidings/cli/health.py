"""Health and metrics of a process that runs apps, over a few lines of HTTP/1.1."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from ..app import App
from ..errors import TidingsError
from ..relay.intake import RunningIntake
from ..store.port import Behind

REQUEST_SECONDS = 5.0
REQUEST_LINES = 100
"""A request that takes longer or has more lines is cut off."""
BEHIND_MOST = 20_000
"""Positions looked at for one subscription by one scrape; beyond that the number of events behind is an estimate."""


class Health:
    """``/health`` and ``/metrics`` of these apps. ``draining``: not healthy any more, so that nobody sends new work here."""

    def __init__(self, apps: Sequence[App]) -> None:
        self.draining = False
        self._apps = apps

    def reasons(self) -> list[str]:
        """Why this process isn't healthy; empty if it is."""
        reasons = ["draining"] if self.draining else []
        for app in self._apps:
            worker = app.worker
            if worker is None:
                reasons.append(f"{app.name}: not running")
                continue
            age = self.lease_age(app)
            if worker.trouble is not None:
                reasons.append(f"{app.name}: {worker.trouble}")
            elif age > worker.lease:
                reasons.append(f"{app.name}: the lease was last renewed {age:.1f} s ago, and lasts {worker.lease:g} s")
            troubles = {one.name: one.trouble for one in (*worker.runners.values(), *worker.sharers.values())}
            reasons += [f"{app.name}: {name}: {trouble}" for name, trouble in troubles.items() if trouble is not None]
        return reasons

    def lease_age(self, app: App) -> float:
        """Seconds since the app's lease was renewed."""
        return 0.0 if app.worker is None else max(0.0, app.clock.monotonic() - app.worker.renewed)

    def report(self) -> dict[str, Any]:
        """What ``/health`` answers."""
        reasons = self.reasons()
        apps = []
        for app in self._apps:
            worker = app.worker
            runners = {} if worker is None else worker.runners
            apps.append(
                {
                    "app": app.name,
                    "worker": None if worker is None else worker.id,
                    "lease_age_seconds": round(self.lease_age(app), 3),
                    "horizon_held_seconds": round(app.store.held_back(), 3),
                    "subscriptions": {
                        name: {
                            "lanes": len(runner.held_lanes()),
                            "in_flight": runner.in_flight,
                            "parked_keys": runner.parked_keys,
                            "held": runner.health.reason,
                            "trouble": runner.trouble,
                            "stuck": runner.stuck(),
                        }
                        for name, runner in runners.items()
                    },
                    "relay": None if app.relay is None else {"name": app.relay.name, "sent": app.relay.sent},
                    "intake": None if app.intake is None else _told(app.intake),
                }
            )
        return {"status": "unhealthy" if reasons else "ok", "reasons": reasons, "apps": apps}

    def behind(self) -> dict[tuple[str, str], Behind]:
        """By app and subscription, from the stores; blocks. A store that fails is left out: ``reasons`` tells of it."""
        found: dict[tuple[str, str], Behind] = {}
        for app in self._apps:
            for name in (*app.subscriptions, *([] if app.relay is None else [app.relay.name])):
                try:
                    found[app.name, name] = app.store.query(lambda unit, name=name: unit.behind(name, BEHIND_MOST))  # type: ignore[misc]
                except TidingsError:
                    continue
        return found

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, one request."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                method, path = await _request(reader)
                status, kind, body = await self._answer(method, path)
                head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
                writer.write(head.encode() + (b"" if method == "HEAD" else body))
                await writer.drain()
        except (TimeoutError, OSError, ValueError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _answer(self, method: str, path: str) -> tuple[str, str, bytes]:
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "text/plain", b"GET /health or /metrics\n"
        if path == "/health":
            report = self.report()
            return "503 Service Unavailable" if report["reasons"] else "200 OK", "application/json", msgspec.json.encode(report) + b"\n"
        if path == "/metrics":
            loop = asyncio.get_running_loop()
            behind = await loop.run_in_executor(None, self.behind)
            kind, body = await loop.run_in_executor(None, self._metrics, behind)
            return "200 OK", kind, body
        return "404 Not Found", "text/plain", b"there are /health and /metrics\n"

    def _metrics(self, behind: dict[tuple[str, str], Behind]) -> tuple[str, bytes]:
        from .metrics import exposition  # prometheus-client is imported by the first scrape

        return exposition(self._apps, behind, {app.name: self.lease_age(app) for app in self._apps}, healthy=not self.reasons())


def _told(intake: RunningIntake) -> dict[str, Any]:
    """A topic that isn't there yet, or a broker that is away, is nothing that another process could mend: it is told, and no reason."""
    return {
        "name": intake.name,
        "taken": intake.taken,
        "dropped": intake.dropped,
        "unread": intake.unread,
        "trouble": intake.trouble,
    }


async def _request(reader: asyncio.StreamReader) -> tuple[str, str]:
    """Method and path; the rest of the head is read and not looked at."""
    line = (await reader.readline()).decode("latin-1").split()
    if len(line) != 3:
        raise ValueError("no HTTP request")
    for _ in range(REQUEST_LINES):
        if (await reader.readline()) in (b"\r\n", b"\n", b""):
            return line[0], line[1].partition("?")[0]
    raise ValueError("too many headers")
