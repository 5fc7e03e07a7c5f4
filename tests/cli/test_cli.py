"""Help, errors and start-up: what a person meets before anything runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.cli.conftest import SHOP, Tidings
from tests.promises import ROOT
from tidings.cli import COMMANDS, cli


def every_command(command: click.Command = cli, name: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if name:
        yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from every_command(found, (*name, inner))


ALL = [" ".join(name) for name, _ in every_command()]


@pytest.mark.parametrize("name", ALL)
def test_help_has_an_example(name: str, tidings: Tidings) -> None:
    text = tidings(*name.split(), "--help").output
    example = " ".join(text.partition("Example:")[2].split())
    assert f"tidings {name}" in example


@pytest.mark.parametrize("name", ALL)
def test_every_command_that_answers_has_json(name: str) -> None:
    command = dict(every_command())[tuple(name.split())]
    if not isinstance(command, click.Group) and name != "completion":
        assert any("--json" in parameter.opts for parameter in command.params)


def test_help_lists_every_command_and_imports_none(tidings: Tidings) -> None:
    code = (
        "import sys; from tidings.cli import main, COMMANDS\n"
        "sys.argv = ['tidings', '--help']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'rich', 'prometheus_client', 'sqlalchemy'} | {'tidings.cli.' + name for name in COMMANDS}\n"
        "print('imported:', sorted(heavy & set(sys.modules)))"
    )
    text = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert text.endswith("imported: []\n")
    for name, line in COMMANDS.items():
        assert name in text
        assert line in text


def test_python_m_tidings() -> None:
    done = subprocess.run([sys.executable, "-m", "tidings", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tidings ")


def test_a_misspelt_command_is_guessed(tidings: Tidings) -> None:
    assert "did you mean 'status'?" in tidings("statsu", code=2).output


def test_without_a_store_it_says_how_to_name_one(tidings: Tidings) -> None:
    output = tidings("status", code=2).output
    assert "--store" in output
    assert "TIDINGS_STORE" in output
    assert "--app" in output


READING = [
    "log",
    "trace order_id 42",
    "status",
    "dead list",
    "dead show charge_card 4",
    "subscription list",
    "scheduled list",
    "store check",
]
CHANGING = ["dead retry charge_card --all", "subscription pause charge_card", "scheduled cancel x", "store trim --upto 1", "publish a.B {}"]


@pytest.mark.parametrize("command", READING + CHANGING)
def test_a_store_that_is_not_there_is_not_made(command: str, tidings: Tidings, tmp_path: Path) -> None:
    output = tidings(*command.split(), store=tmp_path / "no.db", code=2).output
    assert output.count("\n") == 1
    assert output.startswith("Error: ")
    assert "tidings store init" in output
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_store_is_an_error_in_one_line(tidings: Tidings, tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("not a database, only a text that is long enough to be looked at" * 20)
    output = tidings("status", store=tmp_path / "notes.db", code=2).output
    assert "no SQLite database" in output
    assert output.count("\n") == 1
    assert "sqlite:///shop.db" in tidings("status", "--store", "shop.db", code=2).output


def test_debug_shows_the_traceback(tidings: Tidings, tmp_path: Path) -> None:
    code = "from tidings.cli import main; import sys; sys.argv = ['tidings', 'log', '--store', 'x', '--debug']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert "Traceback" in done.stderr
    assert "ConfigurationError" in done.stderr


def test_the_variable_names_the_store(store: Path, tidings: Tidings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDINGS_STORE", f"sqlite:///{store}")
    assert "charge_card" in tidings("status").output


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("shpo:app", "there is no module 'shpo'"),
        ("shop:ap", "no 'ap'; it has shop:app"),
        ("shop:OrderPlaced", "not an App"),
        ("empty:app", "there is no App in it"),
        ("empty", "which app?"),
        ("broken:app", "importing broken failed: ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("wants:app", "importing wants failed: No module named 'not_installed'"),
        ("syntax:app", "importing syntax failed: SyntaxError"),
        ("a b", "name an app as module:app"),
        ("quiet:app", "has no subscriptions"),
    ],
)
def test_what_run_says_when_there_is_no_such_app(spec: str, words: str, tmp_path: Path) -> None:
    for name, text in {
        "shop": SHOP,
        "empty": "x = 1",
        "broken": "def f(): return 1 / 0\nf()",
        "wants": "import not_installed",
        "syntax": "def",
        "quiet": "from tidings import App\napp = App('quiet', store='sqlite:///quiet.db')",
    }.items():
        (tmp_path / f"{name}.py").write_text(text.replace("def f(): return 1 / 0\n", "def f():\n    return 1 / 0\n"))
    done = subprocess.run([sys.executable, "-m", "tidings", "run", spec], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.glob("*.db"))


def test_a_closed_pipe_is_no_error(store: Path) -> None:
    command = f"{sys.executable} -m tidings log --limit 100000 --store sqlite:///{store} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tidings: Tidings) -> None:
    assert "_TIDINGS_COMPLETE" in tidings("completion", shell).output


def test_completion_knows_the_subscriptions(store: Path) -> None:
    from click.shell_completion import ShellComplete

    shell = ShellComplete(cli, {}, "tidings", "_TIDINGS_COMPLETE")
    args = ["subscription", "pause", "--store", f"sqlite:///{store}"]
    assert [item.value for item in shell.get_completions(args, "ch")] == ["charge_card"]


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("dead", "subscription", "scheduled", "store")])
def test_the_reference_page_has_an_example(name: str) -> None:
    page = (ROOT / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    examples = "\n".join(page.split("```")[1::2]) + "\n".join(page.split("`")[1::2])
    assert f"tidings {name}" in examples
