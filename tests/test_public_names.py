"""The public list: sorted, complete, and loaded when it is used."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tidings

TREE = ast.parse(Path(str(tidings.__file__)).read_text())


def test_the_list_is_sorted_and_whole() -> None:
    imported = [alias.name for node in ast.walk(TREE) if isinstance(node, ast.ImportFrom) and node.level for alias in node.names]
    assert tidings.__all__ == sorted({*imported, "__version__"})
    assert set(tidings.__all__) <= set(dir(tidings))


@pytest.mark.parametrize("name", tidings.__all__)
def test_each_name_is_what_its_declaration_says(name: str) -> None:
    """What type checkers read and what runs is the same."""
    found = getattr(tidings, name)
    for node in ast.walk(TREE):
        if isinstance(node, ast.ImportFrom) and name in [alias.name for alias in node.names] and node.level:
            home = importlib.import_module(f"tidings.{node.module}")
            assert getattr(home, name) is found


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'Bus'"):
        tidings.Bus  # type: ignore[attr-defined]


@pytest.mark.parametrize("first", ["tidings.event", "tidings.app", "tidings.cli"])
def test_event_is_the_function_whatever_was_imported_first(first: str) -> None:
    code = f"import {first}, tidings; from tidings import event; print(event(key=None).__name__, callable(tidings.event))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "mark True\n"
    assert inspect.isfunction(tidings.event)


def test_importing_it_imports_neither_asyncio_nor_a_driver() -> None:
    code = "import sys, tidings; print(sorted({'asyncio', 'sqlite3', 'logging', 'click', 'tidings.app'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
