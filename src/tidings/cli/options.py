"""What the commands have in common: which store, which output, times as people write them."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..errors import NotFound
from ..store import store_at

if TYPE_CHECKING:
    from ..app import App
    from ..store.port import Store

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")


@dataclass(frozen=True, slots=True)
class Target:
    """The store that a command is about, and the app if one was named."""

    url: str | None
    spec: str | None

    def app(self) -> App | None:
        """The app that --app names, or None."""
        if self.spec is None:
            return None
        from .applications import load

        return load(self.spec)

    def store(self) -> Store:
        """The store, not opened."""
        app = self.app()
        if app is not None:
            return app.store
        if self.url is None:
            raise click.UsageError("which store? Give --store sqlite:///shop.db, set TIDINGS_STORE, or name an app with --app module:app")
        return store_at(self.url)

    @contextmanager
    def reading(self) -> Iterator[Store]:
        """The store for reading: nothing is made or changed."""
        store = self.store()
        store.open_to_read()
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def writing(self, *, make: bool = False) -> Iterator[Store]:
        """The store for writing; one that isn't there is an error, unless it may be made."""
        store = self.store()
        if not make:
            store.open_to_read()
            store.close()
        store.open()
        try:
            yield store
        finally:
            store.close()


def _debug(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        ctx.meta["tidings.debug"] = True


debug_option = click.option("--debug", is_flag=True, expose_value=False, callback=_debug, help="Show the traceback of an error.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def store_options(fn: F) -> F:
    """--store, --app, --json and --debug; the command gets ``target`` and ``as_json``."""

    @functools.wraps(fn)
    def command(*args: Any, store_url: str | None, app_spec: str | None, **kwargs: Any) -> Any:
        return fn(*args, target=Target(store_url, app_spec), **kwargs)

    options = (
        click.option(
            "--store",
            "store_url",
            metavar="URL",
            envvar="TIDINGS_STORE",
            help="The store, as in sqlite:///shop.db or postgresql://user@host/database [TIDINGS_STORE].",
        ),
        click.option("--app", "app_spec", metavar="MODULE:APP", help="Take the store from this app."),
        json_option,
        debug_option,
    )
    decorated: Any = command
    for option in reversed(options):
        decorated = option(decorated)
    return decorated  # type: ignore[no-any-return]


if TYPE_CHECKING:
    _DurationType = click.ParamType[timedelta]
    _MomentType = click.ParamType[datetime]
else:
    _DurationType = _MomentType = click.ParamType


class Duration(_DurationType):
    """``10m``, ``1.5h``, ``2d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        if isinstance(value, timedelta):
            return value
        found = _DURATION.fullmatch(value.strip())
        if found is None:
            self.fail(f"{value!r} is no duration; write 30s, 10m, 2h or 7d", param, ctx)
        return timedelta(seconds=float(found[1]) * _UNITS[found[2]])


class Moment(_MomentType):
    """A time as ISO 8601 (without an offset: local time), or how long ago: ``10m``."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        if found := _DURATION.fullmatch(value.strip()):
            return datetime.now(UTC) - timedelta(seconds=float(found[1]) * _UNITS[found[2]])
        try:
            return datetime.fromisoformat(value).astimezone()
        except ValueError:
            self.fail(f"{value!r} is no time; write 2026-01-31T12:00:00+01:00, 2026-01-31, or how long ago, as in 10m", param, ctx)


def micros(moment: datetime | None) -> int | None:
    """Microseconds since 1970."""
    return None if moment is None else round(moment.timestamp() * 1_000_000)


def require_subscription(store: Store, name: str) -> None:
    """Raise NotFound unless the store knows a subscription of that name."""
    names = [row.name for row in store.query(lambda unit: unit.subscriptions())]
    if name not in names:
        near = get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}" if names else "the store has none yet"
        raise NotFound(f"there is no subscription {name!r}; {hint}", name=name)


def require_dead_letters(store: Store, name: str) -> None:
    """Raise NotFound unless the store knows a subscription or an intake of that name."""
    if name not in [row.name for row in store.query(lambda unit: unit.intakes())]:
        require_subscription(store, name)


def complete_subscription(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the store's subscriptions, for the shell."""
    try:
        with Target(ctx.params.get("store_url"), ctx.params.get("app_spec")).reading() as store:
            return [row.name for row in store.query(lambda unit: unit.subscriptions()) if row.name.startswith(incomplete)]
    except Exception:  # a completion that fails completes nothing
        return []
