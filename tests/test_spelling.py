from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from tidings import App, Backlog, ConfigurationError, DebeziumOutbox, Intake, PlainJSON, Relay, Retry
from tidings.spelling import spelled


@pytest.mark.parametrize(
    ("make", "option", "text"),
    [
        (lambda **more: App("shop", "sqlite:///unused.db", **more), "retension", "App has no option 'retension'; did you mean retention=?"),
        (
            lambda **more: App("shop", "sqlite:///unused.db", **more),
            "xyz",
            "App has no option 'xyz'; there are name, store, transactions, ",
        ),
        (Retry, "attemps", "Retry has no option 'attemps'; did you mean attempts=?"),
        (Relay, "slot", "Relay has no option 'slot'; did you mean slots=?"),
        (Intake, "form", "Intake has no option 'form'; "),
        (Backlog, "event", "Backlog has no option 'event'; did you mean events=?"),
        (PlainJSON, "xyz", "PlainJSON has no option 'xyz'; "),
        (DebeziumOutbox, "xyz", "DebeziumOutbox has no option 'xyz'; "),
        (App("shop", "sqlite:///unused.db").subscription, "oder", "subscription has no option 'oder'; did you mean order=?"),
        (App("shop", "sqlite:///unused.db").saga, "versoin", "saga has no option 'versoin'; did you mean version=?"),
    ],
)
def test_a_misspelt_option_names_the_right_one(make: Callable[..., Any], option: str, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(text)}"):
        make(**{option: 1})


def test_another_type_error_stays_what_it_is() -> None:
    def add(first: int, second: int) -> int:
        return first + second

    with pytest.raises(TypeError, match="unsupported operand"):
        spelled(add)(1, second="2")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        spelled(add)(1)  # type: ignore[call-arg]
    assert spelled(add)(1, second=2) == 3
