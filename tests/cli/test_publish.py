from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import SHOP, Tidings, said
from tidings.envelope import lane_of


def last(tidings: Tidings, store: Path) -> dict[str, object]:
    event: dict[str, object] = json.loads(tidings("log", "--json", "--limit", "1", store=store).stdout)
    return event


def test_by_hand(store: Path, tidings: Tidings) -> None:
    receipt = said(tidings("publish", "shop.OrderPlaced", '{"order_id": 9}', "--key-name", "order_id", "--json", store=store))
    assert receipt[0]["position"] == 8
    assert receipt[0]["lane"] == lane_of("order_id", "9")
    event = last(tidings, store)
    assert event["id"] == receipt[0]["event_id"]
    assert (event["source"], event["keyname"], event["partitionkey"], event["data"]) == ("shop", "order_id", "9", {"order_id": 9})


def test_with_headers(store: Path, tidings: Tidings) -> None:
    given = ("--header", "region=eu=1", "--header", "traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    tidings("publish", "shop.Ping", "{}", *given, store=store)
    event = last(tidings, store)
    assert (event["region"], event["traceparent"]) == ("eu=1", given[3].partition("=")[2])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--header", "region"], "write NAME=TEXT"),
        (["--header", "Region=eu"], "lower-case letters and digits"),
        (["--header", "id=1"], "choose another name"),
        (["--key-name", "order_id", "--key", "k" * 1025], "1,024 are the most"),
        (["--key-name", "order_id", "--key", "a\0b"], "a zero byte"),
    ],
)
def test_headers_and_keys_that_can_not_be(args: list[str], words: str, store: Path, tidings: Tidings) -> None:
    before = last(tidings, store)["id"]
    assert words in tidings("publish", "shop.Ping", "{}", *args, store=store, code=2).output
    assert last(tidings, store)["id"] == before


def test_without_a_key(store: Path, tidings: Tidings) -> None:
    tidings("publish", "shop.Ping", "{}", "--source", "me", store=store)
    assert "partitionkey" not in last(tidings, store)
    assert last(tidings, store)["source"] == "me"


@pytest.mark.parametrize("option", [("--after", "1h"), ("--at", "2999-01-01T00:00:00Z")])
def test_later(option: tuple[str, str], store: Path, tidings: Tidings) -> None:
    before = len(said(tidings("scheduled", "list", "--json", store=store)))
    assert "scheduled" in tidings("publish", "shop.Ping", "{}", *option, store=store).output
    assert len(said(tidings("scheduled", "list", "--json", store=store))) == before + 1
    assert last(tidings, store)["type"] != "shop.Ping"


def test_what_log_prints_publish_reads(store: Path, tidings: Tidings, tmp_path: Path) -> None:
    lines = tidings("log", "--json", store=store).stdout
    other = tmp_path / "other.db"
    tidings("store", "init", store=other)
    assert tidings("publish", "--cloudevent", "-", store=other, input=lines).output == "published 7 events\n"
    assert tidings("log", "--json", store=other).stdout == lines
    one = tmp_path / "one.json"
    one.write_text(json.dumps([json.loads(lines.splitlines()[0])], indent=2))
    tidings("publish", "--cloudevent", one, store=other)
    assert said(tidings("trace", "order_id", "42", "--json", store=other))["key"] == "42"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["shop.A", "{"], "no JSON"),
        (["shop.A"], "give the event's data"),
        ([], "give TYPE and JSON"),
        (["shop.A", "{}", "--key", "1"], "--key needs --key-name"),
        (["shop.A", "{}", "--key-name", "order_id"], "no field 'order_id'"),
        (["shop.A", '{"order_id": null}', "--key-name", "order_id"], "no field 'order_id'"),
        (["shop.A", "{}", "--at", "2999-01-01", "--after", "1h"], "not both"),
        (["shop.A", "{}", "--after", "soon"], "no duration"),
    ],
)
def test_what_is_refused(args: list[str], words: str, store: Path, tidings: Tidings) -> None:
    assert words in tidings("publish", *args, store=store, code=2).output
    assert last(tidings, store)["sequence"] == f"{7:020d}"


@pytest.mark.parametrize("text", ["", "[1]", '{"specversion": "1.0"}', "nonsense"])
def test_what_is_no_cloudevent(text: str, store: Path, tidings: Tidings) -> None:
    result = tidings("publish", "--cloudevent", "-", store=store, input=text, code=0 if text == "" else 2)
    assert "published 0 events" in result.output if text == "" else "CloudEvent" in result.output


def test_against_the_class_of_an_app(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(SHOP)

    def publish(*args: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tidings", "publish", *args, "--app", "shop:app"]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    wrong = publish("shop.OrderPlaced", '{"order_id": "x"}')
    assert wrong.returncode == 2
    assert "does not fit OrderPlaced: Expected `int`" in wrong.stderr
    assert "did you mean shop.OrderPlaced?" in publish("shop.OrderPlacd", "{}").stderr
    assert not (tmp_path / "shop.db").exists()
    assert "at position 1" in publish("shop.OrderPlaced", '{"order_id": 5}', "--header", "region=eu").stdout
    with closing(sqlite3.connect(tmp_path / "shop.db")) as conn:
        assert conn.execute("SELECT headers FROM tidings_log").fetchall() == [('{"region":"eu"}',)]
