"""SQLAlchemy 2.0 is supported beside 2.1: the enlisting tests run once more, in a process that finds 2.0 first."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.promises import ROOT, untested

PROMISE = "atomic publish in SQLAlchemy 2.0"


def test_enlisting_again_with_the_older_sqlalchemy() -> None:
    overlay = ROOT / ".venv" / "sqlalchemy20"
    if not overlay.is_dir():
        untested(PROMISE, "SQLAlchemy 2.0 is not installed beside the environment; scripts/setup does that")
    tests = [str(path.relative_to(ROOT)) for path in sorted((ROOT / "tests" / "publish").glob("test_enlist*.py"))]
    if not tests:
        untested(PROMISE, "there is no tests/publish/test_enlist*.py")

    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(overlay), *filter(None, [os.environ.get("PYTHONPATH")])])}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    assert python("-c", "import sqlalchemy; print(sqlalchemy.__version__)").stdout.startswith("2.0.")
    ran = python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests)
    assert ran.returncode == 0, ran.stdout + ran.stderr
