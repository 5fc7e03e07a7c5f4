"""The whole shop in processes of its own, small."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from apps.checkout.compare import Measured, percentile
from apps.checkout.customers import Answer
from apps.checkout.picture import draw
from tests.promises import ROOT


def run(module: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"apps.checkout.{module}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("independence")
def test_the_demonstration_ends_with_everything_in_place(tmp_path: Path) -> None:
    """With a worker killed in the middle and a service added late."""
    store = tmp_path / "shop.db"
    done = run("demo", "--count", "150", "--rate", "50", "--seed", "3", "--store", str(store))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL" in done.stdout
    assert "added support" in done.stdout
    assert "150 orders in" in done.stdout
    assert "shop.OrderPlaced" in done.stdout  # the trace
    assert store.exists()
    again = run("demo", "--count", "1", "--store", str(store))
    assert (again.returncode, again.stdout) == (2, "")
    assert "is there already" in again.stderr


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.promise("death at any instruction")
@pytest.mark.promise("independence")
def test_the_demonstration_on_a_server(postgres_url: str) -> None:
    done = run("demo", "--count", "150", "--rate", "50", "--seed", "3", "--store", postgres_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SIGKILL" in done.stdout
    assert "added support" in done.stdout
    assert "150 orders in" in done.stdout
    again = run("demo", "--count", "1", "--store", postgres_url)
    assert (again.returncode, again.stdout) == (2, "")
    assert "holds a log already" in again.stderr


@pytest.mark.processes
@pytest.mark.slow
def test_the_comparison_measures_both_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "images" / "compare.svg"
    done = run("compare", "--count", "120", "--rate", "30", "--down-seconds", "1", "--svg", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    for style in ("request-response", "event-driven"):
        assert style in done.stdout
    ET.fromstring(picture.read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "is empty"), ("order_id,customer_id,ordered_on,quantity,total\n1,4,1997-01-01,2,x\n", "line 2: total is 'x'")],
)
def test_a_bad_file_is_refused_before_anything_starts(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "orders.csv"
    path.write_text(text)
    for module in ("demo", "compare"):
        done = run(module, "--orders", str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert says in done.stderr
        assert done.stderr.count("\n") == 1


def test_bad_options_are_one_line() -> None:
    for arguments in (
        ("demo", "--workers", "0"),
        ("demo", "--count", "0"),
        ("demo", "--rate", "-1"),
        ("compare", "--rate", "0"),
        ("demo", "--store", "postgresql://127.0.0.1:1/none"),
    ):
        done = run(*arguments)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1


def measured(style: str) -> Measured:
    one = Measured(style, began=100.0, down=(1.0, 3.0), unfinished=[(0.0, 0), (2.0, 5), (4.0, 1)])
    one.answers = [Answer(n, 100.0 + n / 10, 0.01 * (n + 1), 503 if n == 20 else 201) for n in range(40)]
    return one


def test_the_picture_is_whole_and_says_what_was_measured() -> None:
    both = [measured("request-response"), measured("event-driven")]
    root = ET.fromstring(draw("payment", both))
    text = " ".join("".join(node.itertext()) for node in root.iter() if node.tag.endswith("text"))
    assert "payment is down" in text
    assert "2 orders refused" in text
    assert "left in the end: request-response 1, event-driven 1" in text


def test_percentiles() -> None:
    assert percentile([], 0.5) == 0
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([float(n) for n in range(100)], 0.99) == 99.0
    assert measured("event-driven").response(0.5, during_outage=True) == pytest.approx(0.21)
    assert measured("event-driven").failed == 1
