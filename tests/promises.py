"""The promises that tests try to break, and the list of those that a run left untested.

A test says which promise it attacks:

    @pytest.mark.promise("order per key")
    def test_...

A test that cannot run where it is says so by `untested`, never by a bare skip: the run then ends with the list of promises left
untested, and with CI=true such a run fails. A complete run (no paths, -k or -m) also lists every promise that no test attacked.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

# docs/concepts/promises.md says what each one means; tests/test_docs.py holds the two together.
PROMISES = (
    "atomic publish",
    "nothing lost",
    "order per key",
    "effects once",
    "independence",
    "parking",
    "nothing vanishes",
    "death at any instruction",
    "publishing never waits",
    "bounded",
)

ROOT = Path(__file__).parent.parent

_UNTESTED = "untested: "
_left: dict[tuple[str, str], None] = {}  # (promise, why), in the order met; a dict because a test may say it many times
_attacked: set[str] = set()


def untested(promise: str, why: str) -> NoReturn:
    """Skip the running test, or the module being imported, and list `promise` as untested at the end of the run."""
    raise pytest.skip.Exception(f"{_UNTESTED}{promise}: {why}", allow_module_level=True)


def shared_data(name: str, promise: str) -> Path:
    """The file of this name in the folder of real data beside the project, or the running test is untested.

    TIDINGS_DATA names another folder than ../shared/data.
    """
    folder = Path(os.environ.get("TIDINGS_DATA") or ROOT.parent / "shared" / "data")
    path = folder / name
    if not path.is_file():
        untested(promise, f"no {name} in ../shared/data (TIDINGS_DATA names another folder)")
    return path


def _named(item: pytest.Item) -> Iterator[str]:
    for mark in item.iter_markers("promise"):
        yield from mark.args


def _complete(config: pytest.Config) -> bool:
    option = config.option
    narrowed = option.keyword or option.markexpr or option.collectonly or getattr(option, "lf", False)
    return config.args_source is config.ArgsSource.TESTPATHS and not narrowed


def _list(config: pytest.Config) -> list[tuple[str, str]]:
    unmet = [p for p in PROMISES if p not in _attacked and p not in {promise for promise, _ in _left}] if _complete(config) else []
    return [*_left, *((promise, "no test attacked it in this run") for promise in unmet)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for name in _named(item):
            if name not in PROMISES:
                raise pytest.UsageError(f"{item.nodeid}: {name!r} is not one of the promises in tests/promises.py")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" and not report.skipped:
        report.user_properties += [("promise", name) for name in _named(item)]  # which travel from a worker with the report
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _attacked.update(str(value) for name, value in report.user_properties if name == "promise")
    _note_untested(report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    _note_untested(report)


def _note_untested(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Told by the words of the skip, which come from whatever process the test ran in."""
    if report.skipped and isinstance(report.longrepr, tuple):
        _, found, said = report.longrepr[2].partition(_UNTESTED)
        if found:
            promise, _, why = said.partition(": ")
            _left[promise, why] = None


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    strict = os.environ.get("CI", "").lower() in ("true", "1")
    if strict and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and _list(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> Generator[None, None, None]:
    yield  # everything else that pytest has to tell comes before
    left = _list(config)
    if left or _complete(config):
        terminalreporter.section(f"promises left untested: {len(left) or 'none'}")
    for promise, why in left:
        terminalreporter.line(f"  {promise}: {why}")
