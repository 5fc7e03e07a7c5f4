"""Orders from files, good and bad, and from a seed."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from apps.checkout.data import BadOrders, generate_orders, read_orders, stock_for
from tests.promises import ROOT

HEADER = "order_id,customer_id,ordered_on,quantity,total\n"
GOOD = "1,4,1997-01-01,2,29.33\n"


def written(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "orders.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_file_of_orders(tmp_path: Path) -> None:
    orders, left_out = read_orders(written(tmp_path, HEADER + GOOD + "2,4,1997-01-18,1,0.00\n"))
    assert left_out == ()
    assert [order.order_id for order in orders] == [1, 2]
    assert orders[0].total == Decimal("29.33")
    assert orders[0].ordered_on.isoformat() == "1997-01-01"


def test_columns_in_another_order_and_a_byte_order_mark(tmp_path: Path) -> None:
    orders, _ = read_orders(written(tmp_path, "\ufefftotal,quantity,ordered_on,customer_id,order_id,extra\n9.50,1,2024-02-29,7,3,x\n"))
    assert (orders[0].order_id, orders[0].customer_id, orders[0].total) == (3, 7, Decimal("9.50"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        (HEADER, "has no orders"),
        ("order_id,total\n1,2\n", "line 1: no column customer_id, ordered_on, quantity"),
        (HEADER + GOOD + "x,4,1997-01-01,2,29.33\n", "line 3: order_id is 'x'"),
        (HEADER + "0,4,1997-01-01,2,29.33\n", "line 2: order_id is '0'"),
        (HEADER + "1_0,4,1997-01-01,2,29.33\n", "line 2: order_id is '1_0'"),
        (HEADER + f"{10**30},4,1997-01-01,2,29.33\n", "line 2: order_id is"),
        (HEADER + "1,,1997-01-01,2,29.33\n", "line 2: customer_id is ''"),
        (HEADER + "1,4,01/01/1997,2,29.33\n", "line 2: ordered_on is '01/01/1997', not a date like"),
        (HEADER + "1,4,1997-01-01,-2,29.33\n", "line 2: quantity is '-2'"),
        (HEADER + "1,4,1997-01-01,2,abc\n", "line 2: total is 'abc', not an amount like 12.34"),
        (HEADER + "1,4,1997-01-01,2,NaN\n", "line 2: total is 'NaN'"),
        (HEADER + "1,4,1997-01-01,2,1e99\n", "line 2: total is '1e99'"),
        (HEADER + "1,4,1997-01-01,2,1.005\n", "line 2: total is '1.005'"),
        (HEADER + "1,4,1997-01-01,2,-1\n", "line 2: total is '-1'"),
        (HEADER + "1,4,1997-01-01,2\n", "line 2: 4 fields, not 5"),
        (HEADER + GOOD + GOOD, "line 3: order_id 1 was there before"),
        (HEADER + '1,4,1997-01-01,2,"29.33\n', "is not a CSV file"),
        (b"\xff\xfe\x00", "is not text in UTF-8"),
        ("\0" * 20, "order_id"),
    ],
)
def test_a_bad_file_is_one_line_that_says_what_is_wrong(tmp_path: Path, text: str | bytes, says: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(BadOrders) as caught:
        read_orders(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_bad_row_is_named_and_can_be_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "1,4,1997-01-01,2,abc\n\n" + GOOD + "3,4,1997-13-01,2,1.00\n")
    with pytest.raises(BadOrders, match="and 1 more bad row"):
        read_orders(path)
    orders, left_out = read_orders(path, skip_bad=True)
    assert [order.order_id for order in orders] == [1]
    assert [line for line, _ in left_out] == [2, 5]


def test_only_bad_rows_are_no_orders(tmp_path: Path) -> None:
    with pytest.raises(BadOrders, match="no orders that can be used"):
        read_orders(written(tmp_path, HEADER + "1,4,1997-01-01,2,abc\n"), skip_bad=True)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadOrders, match="No such file"):
        read_orders(tmp_path / "nowhere.csv")


def test_a_seed_makes_the_same_orders_again() -> None:
    assert generate_orders(50, 3) == generate_orders(50, 3)
    assert generate_orders(50, 3) != generate_orders(50, 4)
    assert [order.order_id for order in generate_orders(50, 3)] == list(range(1, 51))
    with pytest.raises(BadOrders):
        generate_orders(0, 3)


def test_stock_is_a_little_short() -> None:
    orders = generate_orders(2000, 1)
    stock = stock_for(orders, 0.9)
    wanted = sum(order.quantity for order in orders)
    assert 0.9 * wanted <= sum(stock.values()) <= 0.9 * wanted + len(stock)
    assert {order.sku for order in orders} == set(stock)


def test_the_real_orders() -> None:
    path = ROOT.parent / "shared" / "data" / "cdnow_orders.csv"
    if not path.exists():
        pytest.skip("the real orders are not beside this checkout")
    orders, left_out = read_orders(path)
    assert (len(orders), left_out) == (6919, ())
    assert len({order.customer_id for order in orders}) == 2357
