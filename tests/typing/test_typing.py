"""mypy --strict accepts good use and rejects bad, line by line."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import pytest
from mypy import api

from tests.promises import ROOT

HERE = Path(__file__).parent
MARK = "# error"


def errors(folder: Path, cache: Path) -> dict[str, dict[int, list[str]]]:
    """What mypy says by file name and line."""
    options = ["--strict", "--no-error-summary", "--config-file", "", "--cache-dir", str(cache)]
    out, err, _ = api.run([*options, *map(str, folder.glob("*.py"))])
    assert not err, err
    found: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    for line in out.splitlines():
        match = re.fullmatch(r"(.+?):(\d+): (error|note): (.*)", line)
        assert match, line
        if match[3] == "error":
            found[Path(match[1]).name][int(match[2])].append(match[4])
    return found


@pytest.fixture(scope="session")
def cache() -> Path:
    return ROOT / ".mypy_cache" / "typing"


def test_good_use_is_accepted(cache: Path) -> None:
    assert errors(HERE / "good", cache) == {}


def test_bad_use_is_rejected_and_nothing_else(cache: Path) -> None:
    said = errors(HERE / "bad", cache)
    for path in (HERE / "bad").glob("*.py"):
        expected = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.rstrip().endswith(MARK)}
        assert expected
        missed = sorted(expected - said[path.name].keys())
        more = {number: said[path.name][number] for number in sorted(said[path.name].keys() - expected)}
        assert (missed, more) == ([], {})
