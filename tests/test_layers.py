"""Arrows point inward: rooms import only from those that stand before them, and only adapters' own rooms know a technology by its name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import tidings

SOURCE = Path(str(tidings.__file__)).parent

BASE = ("errors", "spelling", "urls", "clock", "ids", "retry", "codec", "event", "envelope")
ROOMS = ("store", "publish", "brokers", "subscribe", "relay", "sagas", "story", "app", "cli")
"""Each may import from itself, from those before it, and from ``BASE``. ``testing`` may import from all but ``cli``."""

ADAPTERS = {
    "store.postgres": ("psycopg", "psycopg2", "psycopg_pool", "asyncpg"),
    "store.sqlite": ("sqlite3", "aiosqlite"),
    "brokers.kafka": ("confluent_kafka",),
}
"""Where a technology is known, and the drivers that nobody else imports. ``brokers.kafka`` stands for all files whose name begins so."""

FACTORIES = ("__init__", "store.__init__", "brokers.__init__")
"""The composition root's: they find an adapter by its URL, or by its public name."""

KNOWN = {
    ("app", "sqlite3"),  # in signatures: what a transaction may be without any package
    ("subscribe.handler", "sqlite3"),
    ("testing.harness", "sqlite3"),  # a test's own rows
    ("publish.publisher", "subscribe.context.Context"),  # the type of what a handler that runs is found by
}
"""What is so on purpose."""


class Import(NamedTuple):
    """``what``: below tidings for ours, else a package. Those for type checkers only count too."""

    where: str
    what: str
    line: int


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def imports(path: Path) -> Iterator[Import]:
    where = module_of(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (Import(where, alias.name.removeprefix("tidings."), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = where.split(".")[: -node.level]
            module = [*base, *(node.module or "").split(".")] if node.module else base
            yield from (Import(where, ".".join([*module, alias.name]), node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            ours = node.module.removeprefix("tidings.")
            yield from (Import(where, f"{ours}.{alias.name}", node.lineno) for alias in node.names)


ALL = [one for path in sorted(SOURCE.rglob("*.py")) for one in imports(path)]


def within(module: str, home: str) -> bool:
    """``brokers.kafka_slot`` is within ``brokers.kafka``, and so is ``store.postgres.unit`` within ``store.postgres``."""
    return re.match(rf"{re.escape(home)}([._]|$)", module) is not None


def test_there_is_something_to_look_at() -> None:
    assert len(ALL) > 500
    assert any(one.what.startswith("brokers.port") for one in ALL)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_nobody_else_knows_an_adapter_or_its_driver(adapter: str) -> None:
    def is_of_it(one: Import) -> bool:
        return within(one.what, adapter) or one.what.split(".")[0] in ADAPTERS[adapter]

    others = [
        f"{one.where}:{one.line} imports {one.what}"
        for one in ALL
        if is_of_it(one) and not within(one.where, adapter) and one.where not in FACTORIES and (one.where, one.what) not in KNOWN
    ]
    assert others == []


def test_rooms_import_only_from_those_before_them() -> None:
    wrong = []
    for one in ALL:
        room, other = one.where.split(".")[0], one.what.split(".")[0]
        if room in ("__init__", "__main__") or other == room or other in BASE:
            continue
        allowed: tuple[str, ...]
        if room == "testing":
            allowed = ROOMS[:-1]
        elif room in BASE:
            allowed = ()
        else:
            allowed = ROOMS[: ROOMS.index(room)]
        if other in (*ROOMS, "testing") and other not in allowed and (one.where, one.what) not in KNOWN:
            wrong.append(f"{one.where}:{one.line} imports {one.what}")
    assert wrong == []


def test_what_is_known_is_still_needed() -> None:
    assert {(one.where, one.what) for one in ALL} >= KNOWN
