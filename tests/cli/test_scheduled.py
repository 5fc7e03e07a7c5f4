from __future__ import annotations

from pathlib import Path

from tests.cli.conftest import Tidings, said


def test_list_and_cancel(store: Path, tidings: Tidings) -> None:
    found = said(tidings("scheduled", "list", "--json", store=store))
    assert sorted(one["event"]["partitionkey"] for one in found) == ["42", "43", "45"]
    assert [one["due"] for one in found] == sorted(one["due"] for one in found)
    output = tidings("scheduled", "list", store=store).output
    assert "shop.Reminder" in output
    first = found[0]["event"]["id"]
    assert first in output
    assert tidings("scheduled", "cancel", first, store=store).output == f"cancelled {first}\n"
    assert first not in tidings("scheduled", "list", store=store).output
    assert "no event" in tidings("scheduled", "cancel", first, store=store, code=2).output


def test_nothing(tmp_path: Path, tidings: Tidings) -> None:
    tidings("store", "init", store=tmp_path / "new.db")
    assert tidings("scheduled", "list", store=tmp_path / "new.db").output == "nothing is scheduled\n"
