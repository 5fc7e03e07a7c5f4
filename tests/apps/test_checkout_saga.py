"""The shop's orders as sagas: their reconciliation must be able to fail, and the whole demonstration, small."""

from __future__ import annotations

import subprocess
import sys

import pytest

from apps.checkout.reconcile import reconcile_sagas
from tests.apps.test_checkout_reconcile import ORDERS, honest
from tests.promises import ROOT

STATES = {1: "completed", 2: "compensated", 3: "compensated", 4: "compensated", 5: "cancelled"}


@pytest.mark.parametrize(
    ("sagas", "problem"),
    [
        (STATES, None),
        ({**STATES, 3: "stuck"}, "order 3 is cancelled, its saga stuck"),
        ({**STATES, 1: "compensated"}, "order 1 is shipped, its saga compensated"),
        ({**STATES, 2: "completed"}, "order 2 is cancelled, its saga completed"),
        ({key: state for key, state in STATES.items() if key != 4}, "order 4 is cancelled, its saga none"),
        ({**STATES, 9: "completed"}, "there is a saga for order 9, which the shop doesn't know"),
    ],
)
def test_a_saga_in_limbo_shows(sagas: dict[int, str], problem: str | None) -> None:
    result = reconcile_sagas(honest(), ORDERS, sagas)
    problems = [text for check in result.checks for text in check.problems if check.name == "no saga in limbo"]
    assert problems == ([] if problem is None else [problem])
    assert result.passed is (problem is None)


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("effects once")
def test_the_demonstration_ends_with_everything_in_place() -> None:
    """Workers killed; compensations get stuck while the bank is closed, and are retried through the command line."""
    command = [sys.executable, "-m", "apps.checkout.saga_demo", "--count", "60", "--seed", "3", "--refuse", "0.1", "--patience", "150"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for happened in ("killed worker-1", "killed worker-2", "sagas are stuck; an operator looks", "No money without goods or refund"):
        assert happened in done.stdout
    assert "is stuck: undoing it fails again and again" in done.stdout
