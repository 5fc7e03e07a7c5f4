"""The documents hold together: their Python parses, the navigation and the files agree, links between the project's own pages lead
somewhere. (Links within docs/ are checked by `make docs`.)"""

from __future__ import annotations

import ast
import doctest
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import tidings
from tests.promises import PROMISES, ROOT
from tidings.cli import cli
from tidings.store import DIALECTS, script

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(r"^([ \t]*)```python[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_its_python_parses(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in FENCE.finditer(text):
        line = text[: block.start(2)].count("\n")
        source = "\n" * line + textwrap.dedent(block[2])
        compile(source, _name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=_name)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert "://" in target or (ROOT / target).exists(), f"{page.name} links to {target}"


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for value in entry.values():
                yield from pages(value)
        elif isinstance(entry, list):
            for value in entry:
                yield from pages(value)

    nav = list(pages(tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]))
    assert sorted(nav) == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


def test_the_promises_are_the_ones_that_the_tests_name() -> None:
    rows = re.findall(r"^\| ([a-z ]+) \|", (DOCS / "concepts" / "promises.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert tuple(rows[1:]) == PROMISES


TITLED = re.compile(r'^```(?:python title="([^"]+)"|(console))\n(.*?)^```', re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", ["tutorial.md", "tutorial-saga.md"])
def test_the_tutorials_run(page: str, tmp_path: Path) -> None:
    """Its files are what their blocks say, one behind the other, and its commands print what stands under them."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONUTF8": "1",
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that grows within a second would look unchanged
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }
    commands = 0
    for block in TITLED.finditer((DOCS / page).read_text(encoding="utf-8")):
        name, console, text = block.groups()
        if console is None:
            with (tmp_path / name).open("a", encoding="utf-8") as file:
                file.write(("\n\n" if file.tell() else "") + text)
            continue
        for command in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, want = command.partition("\n")
            ran = subprocess.run(
                line, shell=True, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", timeout=60
            )
            assert ran.returncode == 0, f"$ {line}\n{ran.stdout}{ran.stderr}"
            same = doctest.OutputChecker().check_output(want, ran.stdout, doctest.ELLIPSIS)
            assert same, f"$ {line}\n--- the page says\n{want}--- it prints\n{ran.stdout}"
            commands += 1
    assert commands, "the tutorial holds no command"


def test_every_public_name_and_option_is_in_the_reference() -> None:
    reference = "\n".join(page.read_text(encoding="utf-8") for page in sorted((DOCS / "reference").glob("*.md")))
    functions = (tidings.App, tidings.App.publish, tidings.App.subscription, tidings.Retry, tidings.event, tidings.SQLiteStore)
    options = {name for function in functions for name in inspect.signature(function).parameters if name != "self"}
    methods = {
        f"{cls.__name__}.{name}" for cls in (tidings.App,) for name, value in vars(cls).items() if callable(value) and name[0] != "_"
    }
    context = {f"ctx.{name}" for name, value in vars(tidings.Context).items() if isinstance(value, property)}
    missing = [name for name in {*tidings.__all__, *options, *methods, *context} if not re.search(rf"`{re.escape(name)}\b", reference)]
    assert not missing, f"docs/reference says nothing of {', '.join(sorted(missing))}"


def test_every_table_is_in_the_reference() -> None:
    tables = {name for dialect in DIALECTS for name in re.findall(r"CREATE TABLE (\w+)", script(dialect))}
    page = (DOCS / "reference" / "tables.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## (tidings_\w+)", page, re.MULTILINE)) == tables


def test_every_command_and_option_is_in_the_reference() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")

    def missing(command: click.Command, heading: str) -> Iterator[str]:
        if isinstance(command, click.Group):
            for name in command.list_commands(click.Context(command)):
                inner = command.get_command(click.Context(command), name)
                assert inner is not None
                yield from missing(inner, heading or name)
                if heading and not re.search(rf"`{name}\b", page):
                    yield f"{heading} {name}"
        if heading and f"## tidings {heading}\n" not in page:
            yield heading
        for option in command.params:
            for name in option.opts if isinstance(option, click.Option) else ():
                if name.startswith("--") and name not in {"--version", "--help"} and f"`{name}" not in page and f" {name} " not in page:
                    yield f"{heading} {name}"

    assert not list(missing(cli, ""))


def test_the_sixty_seconds_of_the_readme_work(tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [block[1] for block in TITLED.finditer(text) if block[1]]
    (console,) = (block[3] for block in TITLED.finditer(text) if block[2])
    source = next(block[3] for block in TITLED.finditer(text) if block[1] == "shop.py")
    assert files == ["shop.py"]
    (tmp_path / "shop.py").write_text(source, encoding="utf-8")
    run, publish, trace = (line.removeprefix("$ ") for line in console.splitlines())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "NO_COLOR": "1"}
    running = subprocess.Popen(
        shlex.split(run), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8"
    )
    watchdog = threading.Timer(30, running.kill)
    watchdog.start()
    try:
        assert running.stdout is not None
        printed = ""
        while "running on" not in printed:
            line = running.stdout.readline()
            assert line, printed
            printed += line
        subprocess.run(shlex.split(publish), cwd=tmp_path, env=environment, check=True, capture_output=True, timeout=30)
        while "receipt for order 42" not in printed:
            line = running.stdout.readline()
            assert line, printed
            printed += line
        assert "charge 9.90 for order 42" in printed
    finally:
        running.send_signal(signal.SIGTERM)
        printed += running.communicate(timeout=30)[0]
        watchdog.cancel()
    assert running.returncode == 0, printed
    told = subprocess.run(shlex.split(trace), cwd=tmp_path, env=environment, check=True, capture_output=True, encoding="utf-8", timeout=30)
    assert "send_receipt: handled" in told.stdout
