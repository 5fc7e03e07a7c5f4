"""What a run says about promises that it left untested."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.promises import PROMISES, ROOT

ATTACKED = "".join(f"@pytest.mark.promise({promise!r})\n" for promise in PROMISES)


def run(folder: Path, source: str, *arguments: str, ci: str = "true") -> subprocess.CompletedProcess[str]:
    """Run pytest on one file with this source, in a project of its own."""
    (folder / "test_it.py").write_text("import pytest\nfrom tests.promises import untested\n" + source)
    (folder / "pytest.ini").write_text("[pytest]\ntestpaths = .\nmarkers = promise(name): it\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.promises", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
    )


def test_a_run_that_attacks_every_promise_passes(tmp_path: Path) -> None:
    ran = run(tmp_path, f"{ATTACKED}def test_all(): pass\n")
    assert ran.returncode == 0, ran.stdout
    assert "promises left untested: none" in ran.stdout


@pytest.mark.parametrize(("ci", "status"), [("true", 1), ("", 0)])
def test_a_promise_left_untested_is_listed_last_and_fails_ci(tmp_path: Path, ci: str, status: int) -> None:
    ran = run(tmp_path, f"{ATTACKED}def test_all(): pass\ndef test_one(): untested('bounded', 'no disk')\n", ci=ci)
    assert ran.returncode == status, ran.stdout
    *_, promise, closing = filter(None, ran.stdout.splitlines())
    assert promise == "  bounded: no disk"
    assert "1 passed, 1 skipped" in closing


@pytest.mark.parametrize("where", ["in a test", "in a module"])
def test_processes_side_by_side_tell_the_same(tmp_path: Path, where: str) -> None:
    side_by_side = ("-p", "xdist", "--numprocesses", "2")
    ran = run(tmp_path, f"{ATTACKED}def test_all(): pass\n", *side_by_side)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "promises left untested: none" in ran.stdout
    (tmp_path / "test_other.py").write_text(
        "from tests.promises import untested\n"
        + ("def test_one(): untested('bounded', 'no disk: none')\n" if where == "in a test" else "untested('bounded', 'no disk: none')\n")
    )
    ran = run(tmp_path, f"{ATTACKED}def test_all(): pass\n", *side_by_side)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert "  bounded: no disk: none\n" in ran.stdout


def test_a_promise_that_no_test_attacked_is_untested(tmp_path: Path) -> None:
    ran = run(tmp_path, f"{ATTACKED.replace(repr('parking'), repr('bounded'))}def test_all(): pass\n")
    assert ran.returncode == 1, ran.stdout
    assert "  parking: no test attacked it in this run" in ran.stdout


def test_part_of_a_run_answers_only_for_itself(tmp_path: Path) -> None:
    assert run(tmp_path, "def test_all(): pass\n", "test_it.py").returncode == 0


def test_a_promise_that_nobody_made_is_refused(tmp_path: Path) -> None:
    ran = run(tmp_path, "@pytest.mark.promise('speed')\ndef test_all(): pass\n")
    assert ran.returncode == 4
    assert "'speed' is not one of the promises" in ran.stdout + ran.stderr
