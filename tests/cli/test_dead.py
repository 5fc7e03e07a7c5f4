from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said


def test_list_and_show(filled: Path, tidings: Tidings) -> None:
    output = tidings("dead", "list", store=filled).output
    assert "ValueError: card [red]declined[/red]" in output
    (letter,) = said(tidings("dead", "list", "charge_card", "--json", store=filled))
    assert (letter["subscription"], letter["position"], letter["attempts"]) == ("charge_card", 4, 2)
    shown = tidings("dead", "show", "charge_card", "4", store=filled).output
    assert "Traceback (most recent call last):" in shown
    assert "attempt 2" in shown
    assert len(said(tidings("dead", "show", "charge_card", "4", "--json", store=filled))["failed_attempts"]) == 2
    assert tidings("dead", "list", "inventory", store=filled).output == "no dead letters\n"


@pytest.mark.parametrize("which", ["4", "--all"])
def test_retry(which: str, store: Path, tidings: Tidings) -> None:
    assert tidings("dead", "retry", "charge_card", which, store=store).output == "1 dead letter of charge_card will be tried again\n"
    charge = said(tidings("status", "--json", store=store))["subscriptions"][0]
    assert (charge["parked"], charge["dead"]) == (1, 0)


FIT = ["--type shop.OrderPlaced", "--error declined", "--key order_id 47", "--all --error card"]
UNFIT = ["--type shop.OrderShipped", "--error Declined", "--key order_id 42", "--key customer_id 47", "--all --error timeout"]


@pytest.mark.parametrize("which", [*FIT, *UNFIT])
def test_those_that_fit(which: str, filled: Path, tidings: Tidings) -> None:
    """Listed, and tried again; the others are left alone."""
    fits = which in FIT
    options = which.removeprefix("--all ").split()
    assert len(said(tidings("dead", "list", *options, "--json", store=filled))) == fits
    assert fits or tidings("dead", "list", "charge_card", *options, store=filled).output == "no dead letters that fit\n"


@pytest.mark.parametrize("which", [*FIT, *UNFIT])
def test_those_that_fit_are_changed(which: str, store: Path, tidings: Tidings) -> None:
    fits = which in FIT
    assert said(tidings("dead", "retry", "charge_card", *which.split(), "--json", store=store))["changed"] == fits
    assert len(said(tidings("dead", "list", "--json", store=store))) == (not fits)


def test_drop_asks_first(store: Path, tidings: Tidings) -> None:
    tidings("dead", "drop", "charge_card", "4", store=store, code=1, input="n\n")
    assert len(said(tidings("dead", "list", "--json", store=store))) == 1
    tidings("dead", "drop", "charge_card", "4", store=store, input="y\n")
    assert said(tidings("dead", "list", "--json", store=store)) == []
    assert said(tidings("dead", "drop", "charge_card", "--all", "--yes", "--json", store=store))["changed"] == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("show charge_card 1", "no dead letter at position 1"),
        ("show charge_crad 4", "did you mean charge_card?"),
        ("retry charge_card 1", "no dead letter at position 1"),
        ("retry inventory 3", "no dead letter at position 3"),  # parked, not dead
        ("retry charge_crad 4", "did you mean charge_card?"),
        ("list nobody", "there are charge_card, inventory"),
        ("retry charge_card", "their positions, --type, --key or --error, or --all"),
        ("drop charge_card 4 --all --yes", "their positions, --type, --key or --error, or --all"),
    ],
)
def test_what_is_refused(args: str, words: str, filled: Path, tidings: Tidings) -> None:
    assert words in tidings("dead", *args.split(), store=filled, code=2).output
