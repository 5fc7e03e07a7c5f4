"""Orders to place: from a CSV file with the columns order_id, customer_id, ordered_on, quantity, total; or generated from a seed.

A file is read and checked whole before anything starts, so that a bad row is refused and not met halfway.
"""

from __future__ import annotations

import csv
import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal, InvalidOperation
from pathlib import Path

COLUMNS = ("order_id", "customer_id", "ordered_on", "quantity", "total")
ARTICLES = 40
_MOST = 2**63 - 1  # what a SQLite INTEGER holds


@dataclass(frozen=True, slots=True)
class Order:
    order_id: int
    customer_id: int
    ordered_on: date
    quantity: int
    total: Decimal

    @property
    def sku(self) -> str:
        """What was ordered. The files don't say, so the order's number decides."""
        return f"cd-{self.order_id % ARTICLES:02d}"


class BadOrders(ValueError):
    """The file can't be used as it is; the text is one line. ``problems`` has every bad row as (line, what is wrong)."""

    def __init__(self, text: str, problems: tuple[tuple[int, str], ...] = ()) -> None:
        super().__init__(text)
        self.problems = problems


def read_orders(path: Path, *, skip_bad: bool = False) -> tuple[list[Order], tuple[tuple[int, str], ...]]:
    """The orders of a CSV file, and the rows left out as (line, what is wrong): none unless ``skip_bad``.

    Raises:
        BadOrders: no such file, not a CSV of these columns, no rows, or a bad row.
    """
    orders: dict[int, Order] = {}
    problems: list[tuple[int, str]] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise BadOrders(f"{path} is empty: wanted a line of column names ({','.join(COLUMNS)}) and one line for each order")
            missing = [name for name in COLUMNS if name not in header]
            if missing:
                raise BadOrders(f"{path}, line 1: no column {', '.join(missing)} (it has: {', '.join(header)})")
            for row in reader:
                if not row:
                    continue
                try:
                    order = _order(header, row)
                    if order.order_id in orders:
                        raise ValueError(f"order_id {order.order_id} was there before")
                    orders[order.order_id] = order
                except ValueError as error:
                    problems.append((reader.line_num, str(error)))
    except OSError as error:
        raise BadOrders(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise BadOrders(f"{path} is not text in UTF-8 (byte {error.start})") from error
    except csv.Error as error:
        raise BadOrders(f"{path} is not a CSV file: {error}") from error
    if problems and not skip_bad:
        line, what = problems[0]
        more = f", and {len(problems) - 1} more bad rows" if len(problems) > 1 else ""
        raise BadOrders(f"{path}, line {line}: {what}{more} (--skip-bad leaves bad rows out)", tuple(problems))
    if not orders:
        raise BadOrders(f"{path} has no orders{' that can be used' if problems else ''}", tuple(problems))
    return list(orders.values()), tuple(problems)


def _order(header: list[str], row: list[str]) -> Order:
    if len(row) != len(header):
        raise ValueError(f"{len(row)} fields, not {len(header)}")
    fields = {name: value.strip() for name, value in zip(header, row, strict=True)}
    try:
        ordered_on = date.fromisoformat(fields["ordered_on"])
    except ValueError:
        raise ValueError(f"ordered_on is {fields['ordered_on']!r}, not a date like 1997-12-24") from None
    return Order(
        order_id=_whole("order_id", fields["order_id"]),
        customer_id=_whole("customer_id", fields["customer_id"]),
        ordered_on=ordered_on,
        quantity=_whole("quantity", fields["quantity"]),
        total=_amount(fields["total"]),
    )


def _whole(name: str, text: str) -> int:
    # int() would take "1_000" and " ٣ " as well
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= _MOST:
        raise ValueError(f"{name} is {text!r}, not a whole number from 1")
    return int(text)


def _amount(text: str) -> Decimal:
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or not 0 <= amount < 10**12 or amount != amount.quantize(Decimal("0.01")):
        raise ValueError(f"total is {text!r}, not an amount like 12.34")
    return amount


def generate_orders(count: int, seed: int) -> list[Order]:
    """``count`` orders of customers of whom a few order often, the same for the same seed.

    Raises:
        BadOrders: ``count`` is less than 1.
    """
    if count < 1:
        raise BadOrders(f"{count} orders: wanted at least 1")
    rng = random.Random(seed)
    customers = max(1, count // 3)
    first = date(2024, 1, 1)
    orders = []
    for order_id in range(1, count + 1):
        quantity = min(40, 1 + int(rng.expovariate(0.6)))
        price = Decimal(rng.randint(699, 2499)).scaleb(-2)
        orders.append(
            Order(
                order_id=order_id,
                customer_id=1 + int(customers * rng.random() ** 3),
                ordered_on=first + timedelta(days=order_id * 365 // (count + 1)),
                quantity=quantity,
                total=quantity * price,
            )
        )
    return orders


def stock_for(orders: Iterable[Order], share: float = 0.92) -> dict[str, int]:
    """So many pieces of each article that about ``share`` of what is asked for is there.

    A little less than is sold when some orders are cancelled anyway, so that the last ones find the shelf empty.
    """
    wanted: Counter[str] = Counter()
    for order in orders:
        wanted[order.sku] += order.quantity
    return {sku: math.ceil(pieces * share) for sku, pieces in sorted(wanted.items())}
