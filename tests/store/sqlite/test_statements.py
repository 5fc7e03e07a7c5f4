from __future__ import annotations

import re

from tests.promises import ROOT


def test_no_statement_numbers_its_parameters() -> None:
    """`?1` with a sequence is an error from Python 3.14 on, and a warning from 3.12."""
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for folder in ("src", "apps", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"[=(,\s]\?\d", line)
    ]
    assert found == []
