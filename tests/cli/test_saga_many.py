"""What operators do to many sagas at once: told before it is done, in batches, and each with its line in the audit trail."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.conftest import Tidings, said
from tests.promises import ROOT
from tidings import App, Event, Retry, Saga
from tidings.store.sagas import Start
from tidings.testing import Harness

MANY = 230


class Placed(Event, key="order_id"):
    order_id: int


class Shipped(Event, key="order_id"):
    order_id: int


def charge(order_id: int) -> None:
    if order_id <= MANY:
        raise ConnectionError("no answer")


async def run(path: Path) -> None:
    """Orders up to MANY wait for another attempt at charge, three more for their shipment."""
    app = App("shop", store=f"sqlite:///{path}")

    @app.saga(Placed, waits=[Shipped])
    async def checkout(order: Placed, saga: Saga) -> None:
        await saga.step(charge, order.order_id, retry=Retry(first=60, jitter=0))
        await saga.wait(Shipped)

    async with Harness(app, store=f"sqlite:///{path}") as shops:
        for order in range(1, MANY + 4):
            await shops.publish(Placed(order_id=order))
        await shops.settle()


@pytest.fixture
def sagas(tmp_path: Path) -> Path:
    path = tmp_path / "sagas.db"
    asyncio.run(run(path))
    return path


def actions(path: Path) -> int:
    with closing(sqlite3.connect(path)) as conn:
        return int(conn.execute("SELECT count(*) FROM tidings_saga_actions").fetchone()[0])


def test_it_is_told_before_and_done_when_that_is_said(sagas: Path, tidings: Tidings) -> None:
    def act(*args: str, code: int = 0) -> str:
        return tidings("saga", *args, "--reason", "the bank has closed", "--actor", "ann", store=sagas, code=code).output

    told = act("cancel", "checkout", "--waiting-for", "charge")
    assert f"cancel would be done to {MANY} instances of checkout (of {MANY} waiting)" in told
    assert re.search(r"keys: 1, 10, 100, .* …\nnothing was changed; --yes does it", told)
    assert actions(sagas) == 0
    options = ["--waiting-for", "charge", "--limit", "150", "--yes", "--json", "--reason", "r", "--actor", "ann"]
    done = said(tidings("saga", "cancel", "checkout", *options, store=sagas))
    assert (done["matched"], done["done"], done["refused"], done["dry_run"], len(done["instances"])) == (150, 150, [], False, 150)
    assert actions(sagas) == 150
    told = act("cancel", "checkout", "--state", "waiting", "--state", "stuck", "--yes", code=1)
    assert "refused: checkout 1 is to be cancelled already" in told
    assert "… and 140 others refused; --json lists them" in told
    assert f"cancel: {MANY + 3 - 150} instances of checkout, 150 refused" in told
    assert actions(sagas) == MANY + 3
    (one,) = said(tidings("saga", "show", "checkout", str(MANY + 3), "--json", store=sagas))
    (action,) = one["actions"]
    assert (action["action"], action["actor"], action["reason"]) == ("cancel", "ann", "the bank has closed")


def test_many_are_skipped_paused_and_tried_again(sagas: Path, tidings: Tidings) -> None:
    def act(*args: str) -> str:
        return tidings("saga", *args, "--reason", "r", "--yes", store=sagas).output

    assert "pause: 3 instances of checkout" in act("pause", "checkout", "--waiting-for", "Shipped")
    assert "resume: 3 instances of checkout" in act("resume", "checkout", "--state", "paused")
    assert "retry: 5 instances of checkout" in act("retry", "checkout", "--all", "--limit", "5")
    assert f"skip: {MANY} instances of checkout" in act("skip", "checkout", "charge", "--waiting-for", "charge")
    assert "skip: 0 instances of checkout" in act("skip", "checkout", "charge", "--waiting-for", "charge")
    assert "retry: 0 instances of checkout" in act("retry", "checkout", "--all", "--older-than", "30000d")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("cancel checkout", "say which: one by its KEY, or many by --state"),
        ("cancel checkout 1 --state waiting", "say which: one by its KEY, or many by --state"),
        ("skip checkout 1", "Missing argument 'STEP'"),
        ("skip checkout --all", "Missing argument 'STEP'"),
        ("cancel checkout --state completed", "'completed' is not one of"),
        ("supply checkout --all", "No such option"),
        ("cancel chekcout --all --yes", "there is no instance of a saga 'chekcout'; there are checkout"),
    ],
)
def test_bad_input(args: str, words: str, sagas: Path, tidings: Tidings) -> None:
    assert words in tidings("saga", *args.split(), "--reason", "r", store=sagas, code=2).output
    assert actions(sagas) == 0


@pytest.mark.promise("nothing vanishes")
@pytest.mark.processes
def test_who_stops_it_is_told_how_far_it_came(tmp_path: Path) -> None:
    path = tmp_path / "sagas.db"
    app = App("shop", store=f"sqlite:///{path}")
    app.open()
    starts = [Start("checkout", 1, "shop", app.envelope(Placed(order_id=order)), order) for order in range(6000)]
    app.store.write(lambda unit: unit.sagas().start_all(starts)).result()
    app.close()
    command = [
        sys.executable,
        "-m",
        "tidings",
        "saga",
        "pause",
        "checkout",
        "--all",
        "--yes",
        "--reason",
        "r",
        "--store",
        f"sqlite:///{path}",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "100 done\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    found = re.fullmatch(r"pause: ([\d,]+) instances of checkout; stopped there, and what is done stays\n", out)
    assert found is not None, out
    done = int(found[1].replace(",", ""))
    assert done % 100 == 0
    assert 100 <= done < 6000
    assert actions(path) == done
    with closing(sqlite3.connect(path)) as conn:
        assert conn.execute("SELECT count(*) FROM tidings_sagas WHERE state = 'paused'").fetchone() == (done,)
