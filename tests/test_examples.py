"""Every program in examples/ runs as a user would run it, and prints what stands in the .expected file beside it.

In an .expected file `...` stands for anything, as in doctest: for what differs between runs (ids, times).
"""

from __future__ import annotations

import difflib
import doctest
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import ROOT, untested

FOLDER = ROOT / "examples"
PROGRAMS = sorted(FOLDER.glob("*.py"))


def test_the_folder_has_programs_and_no_strays() -> None:
    strays = {path.stem for path in FOLDER.glob("*.expected")} - {path.stem for path in PROGRAMS}
    assert not strays, f".expected files without their program: {sorted(strays)}"
    if not PROGRAMS:
        untested("examples do what they say", "examples/ holds no program")


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.stem)
def test_prints_what_is_expected(program: Path, tmp_path: Path) -> None:
    expected = program.with_suffix(".expected")
    assert expected.is_file(), f"{expected.name} is missing: what should {program.name} print?"
    ran = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "1", "COLUMNS": "120", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
    )
    assert ran.returncode == 0, f"{program.name} ended with {ran.returncode}\n{ran.stdout}{ran.stderr}"
    want = expected.read_text(encoding="utf-8")
    if not doctest.OutputChecker().check_output(want, ran.stdout, doctest.ELLIPSIS):
        diff = difflib.unified_diff(want.splitlines(True), ran.stdout.splitlines(True), expected.name, "printed")
        pytest.fail("".join(diff), pytrace=False)
