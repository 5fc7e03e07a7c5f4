"""``tidings run``: the worker as a program."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

import click

from ..app import App, serve
from ..errors import ConfigurationError
from . import Failed
from .applications import load
from .options import debug_option
from .output import count

PROGRESS_SECONDS = 1.0


@click.command(epilog="Example: tidings run shop:app analytics:app --health-port 8080")
@click.argument("apps", nargs=-1, required=True, metavar="MODULE:APP...")
@click.option(
    "--health-port", type=click.IntRange(0, 65535), help="Serve /health (JSON) and /metrics (Prometheus) here; 0 takes a free port."
)
@click.option("--health-host", default="127.0.0.1", show_default=True, help="The address to serve them on.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False), default="info", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print what starts and stops as JSON lines.")
@debug_option
def run(apps: tuple[str, ...], health_port: int | None, health_host: str, log_level: str, as_json: bool) -> None:
    """Run the subscriptions of one or more apps in this process.

    Modules are imported from the current directory. SIGINT (Ctrl-C) and SIGTERM drain: nothing new begins, what runs ends, checkpoints
    are written. A second one stops at once; what ran then is handled again.
    """
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    found = [load(spec) for spec in apps]
    for app in found:
        if not app.subscriptions and not app.relays:
            raise ConfigurationError(
                f"the app {app.name!r} has no subscriptions, so there is nothing to run; add one with @app.subscribe(…)"
            )
    if len(set(map(id, found))) < len(found):
        raise ConfigurationError("an app was named twice")
    try:
        drained = asyncio.run(_run(found, health_host, health_port, as_json))
    except OSError as error:
        if health_port is None:
            raise
        raise Failed(f"{health_host}:{health_port} can't be served on: {error.strerror or error}") from error
    if not drained:
        raise SystemExit(1)


async def _run(apps: list[App], host: str, port: int | None, as_json: bool) -> bool:
    from .health import Health

    server: asyncio.Server | None = None
    progress: list[asyncio.Task[None]] = []

    def say(event: str, text: str, **facts: Any) -> None:
        if as_json:
            import msgspec

            click.echo(msgspec.json.encode({"event": event, **facts}))
        else:
            click.echo(text)
        sys.stdout.flush()

    health = Health(apps)
    if port is not None:
        server = await asyncio.start_server(health.serve, host, port)

    def ready() -> None:
        for app in apps:
            for subscription in app.subscriptions.values():
                options = subscription.options
                types = ", ".join(sorted(subscription.handlers))
                order = {"key": "in order per key", "none": "in no order", "log": "in the log's order"}[options.order]
                say(
                    "subscription",
                    f"{app.name}: {subscription.name} reads {types}, {order}, {options.concurrency} at a time",
                    app=app.name,
                    subscription=subscription.name,
                    types=sorted(subscription.handlers),
                )
            if app.relay is not None:
                broker = app.broker.label if app.broker is not None else ""
                say(
                    "relay",
                    f"{app.name}: {app.relay.name} sends what {app.name} publishes to {broker}, with {app.relay.groups} slots",
                    app=app.name,
                    relay=app.relay.name,
                    broker=broker,
                    slots=app.relay.groups,
                )
        if server is not None:
            address = server.sockets[0].getsockname()
            url = f"http://{address[0]}:{address[1]}"
            say("serving", f"health at {url}/health, metrics at {url}/metrics", url=url)
        say("running", f"running on {', '.join(sorted({app.store.url for app in apps}))}; Ctrl-C drains", pid=os.getpid())

    def draining() -> None:
        health.draining = True
        progress.append(asyncio.get_running_loop().create_task(tell_progress()))

    async def tell_progress() -> None:
        workers = [app.worker for app in apps if app.worker is not None]
        while True:
            running = sum(runner.in_flight for worker in workers for runner in worker.runners.values())
            say("draining", f"draining: {count(running, 'handler')} still running; a second signal stops at once", running=running)
            await asyncio.sleep(PROGRESS_SECONDS)

    try:
        drained = await serve(apps, ready=ready, draining=draining)
    finally:
        for task in progress:
            task.cancel()
        if server is not None:
            server.close()
    if not drained:
        say("stopped", "stopped without draining; what ran is handled again")
        sys.stdout.flush()
        os._exit(1)  # threads of handlers can't be ended, and would keep the process
    say("drained", "drained")
    return drained
