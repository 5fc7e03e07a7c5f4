"""The reconciliation must be able to fail: honest books pass, and books spoiled in any one place don't."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.checkout.books import Books, Logged, Placed, Reservation, read_books
from apps.checkout.ledger import Account, Entry
from apps.checkout.reconcile import READS, broken_orders, reconcile

ORDERS = {1, 2, 3, 4, 5}

# What happened to the five orders, in the order of the log.
STORIES = {
    1: "shop.OrderPlaced fraud.OrderApproved inventory.StockReserved payment.PaymentRequested payment.PaymentCharged"
    " shipping.ShipmentRequested shipping.OrderShipped",
    2: "shop.OrderPlaced fraud.OrderApproved inventory.StockReserved payment.PaymentRequested payment.PaymentDeclined shop.OrderCancelled"
    " inventory.StockReleased",
    3: "shop.OrderPlaced fraud.OrderApproved payment.PaymentRequested inventory.OutOfStock shop.OrderCancelled payment.PaymentCharged"
    " payment.RefundRequested payment.PaymentRefunded",
    4: "shop.OrderPlaced fraud.OrderRejected inventory.StockReserved shop.OrderCancelled inventory.StockReleased",
    5: "shop.OrderPlaced fraud.OrderApproved inventory.StockReserved payment.PaymentRequested payment.PaymentCharged"
    " shipping.ShipmentRequested shipping.ShipmentRefused shop.OrderCancelled payment.RefundRequested inventory.StockReleased"
    " payment.PaymentRefunded support.CallDue",
}
VIPS = {1, 5}


def entry(number: int, kind: str, order_id: int, amount: int = 0) -> Entry:
    return Entry(number, f"key {number}", kind, order_id, amount, "", 0.0)


def honest() -> Books:
    log: list[Logged] = []
    for order_id, story in STORIES.items():
        for kind in story.split():
            log.append(Logged(len(log) + 1, kind, order_id, order_id in VIPS and kind.startswith("shop.")))
    seen = {
        service: [
            (event.order_id, event.position)
            for event in log
            if event.type in types and (service != "support" or event.vip or event.type == "support.CallDue")
        ]
        for service, types in READS.items()
    }
    reasons = {2: "card declined", 3: "out of stock", 4: "rejected as fraud", 5: "parcel refused"}
    mails = [(order_id, "placed") for order_id in sorted(ORDERS)] + [(order_id, "cancelled") for order_id in reasons]
    mails += [(1, "shipped"), (3, "refunded"), (5, "refunded")]
    return Books(
        orders=[
            Placed(n, n, "2024-01-01", "cd-01", 2, 1000 * n, n in VIPS, "cancelled" if n in reasons else "shipped", reasons.get(n))
            for n in sorted(ORDERS)
        ],
        payments={1: (1000, "charged"), 2: (2000, "declined"), 3: (3000, "refunded"), 4: (0, "void"), 5: (5000, "refunded")},
        frauds={1: True, 2: True, 3: True, 4: False, 5: True},
        reservations=[
            Reservation(1, "cd-01", 2, "shipped"),
            Reservation(2, "cd-01", 2, "released"),
            Reservation(3, "cd-01", 2, "refused"),
            Reservation(4, "cd-01", 2, "released"),
            Reservation(5, "cd-01", 2, "released"),
        ],
        stock={"cd-01": (10, 8)},
        parcels={1: "shipped", 2: "cancelled", 3: "cancelled", 4: "cancelled", 5: "cancelled"},
        mails_owed=mails,
        totals={
            "placed": (5, 15000),
            "charged": (3, 9000),
            "refunded": (2, 8000),
            "cancelled: card declined": (1, 2000),
            "cancelled: out of stock": (1, 3000),
            "cancelled: rejected as fraud": (1, 4000),
            "cancelled: parcel refused": (1, 5000),
        },
        days={"2024-01-01": (5, 15000)},
        alerts=[(1, "a VIP has ordered"), (5, "a VIP has ordered"), (5, "cancelled: parcel refused"), (5, "call the customer")],
        log=log,
        seen=seen,
        ledgers={
            "gateway": Account(
                [
                    entry(1, "charge", 1, 1000),
                    entry(2, "charge", 3, 3000),
                    entry(3, "refund", 3, -3000),
                    entry(4, "charge", 5, 5000),
                    entry(5, "refund", 5, -5000),
                ],
                repeats=2,
                outages=2,
            ),
            "warehouse": Account([entry(1, "parcel", 1, 2)], 0, 0),
            "mail": Account([entry(number, kind, order_id) for number, (order_id, kind) in enumerate(mails)], 0, 0),
        },
    )


def test_honest_books_pass() -> None:
    books = honest()
    result = reconcile(books, ORDERS)
    assert [problem for check in result.checks for problem in check.problems] == []
    assert all(check.examined > 0 for check in result.checks)
    assert result.passed
    assert broken_orders(books) == set()


Spoil = Callable[[Books], object]


def state_of(n: int, state: str) -> Spoil:
    def spoil(books: Books) -> None:
        books.orders[n - 1] = books.orders[n - 1]._replace(state=state)

    return spoil


def ledger(name: str, change: Callable[[list[Entry]], object]) -> Spoil:
    return lambda books: change(books.ledgers[name].entries)


def saw(service: str, change: Callable[[list[tuple[int, int]]], object]) -> Spoil:
    return lambda books: change(books.seen[service])


def put(rows: Any, key: object, value: object) -> None:
    rows[key] = value


def alerts(books: Books) -> list[tuple[int, str]]:
    assert books.alerts is not None
    return books.alerts


def swapped(rows: list[tuple[int, int]]) -> None:
    rows[0], rows[1] = rows[1], rows[0]


SPOILED: dict[str, tuple[str, Spoil]] = {
    "an order is lost": ("every order taken", lambda b: b.orders.pop()),
    "an order that nobody placed": ("every order taken", lambda b: b.orders.append(b.orders[0]._replace(order_id=9))),
    "an order is there twice": ("every order taken", lambda b: b.orders.append(b.orders[0])),
    "an order never ended": ("came to an end", state_of(1, "placed")),
    "a cancelled order's payment stands": ("came to an end", lambda b: put(b.payments, 3, (3000, "charged"))),
    "a cancelled order's parcel went": ("came to an end", lambda b: put(b.parcels, 2, "shipped")),
    "a shipped order is not paid in the payment's table": ("came to an end", lambda b: put(b.payments, 1, (1000, "charging"))),
    "charged twice under two keys": ("charged once net", ledger("gateway", lambda e: e.append(entry(9, "charge", 1, 1000)))),
    "charged twice and refunded once": (
        "charged once net",
        ledger("gateway", lambda e: e.extend([entry(8, "charge", 1, 1000), entry(9, "refund", 1, -1000)])),
    ),
    "a refund is missing": ("charged once net", ledger("gateway", lambda e: e.pop())),
    "refunded twice": ("charged once net", ledger("gateway", lambda e: e.append(entry(9, "refund", 5, -5000)))),
    "a cent too much": ("charged once net", ledger("gateway", lambda e: put(e, 0, entry(1, "charge", 1, 1001)))),
    "a shipped order was never charged": ("charged once net", ledger("gateway", lambda e: e.pop(0))),
    "a charge for an unknown order": ("charged once net", ledger("gateway", lambda e: e.append(entry(9, "charge", 77, 1)))),
    "shipped twice": ("shipped once", ledger("warehouse", lambda e: e.append(entry(2, "parcel", 1, 2)))),
    "never shipped": ("shipped once", ledger("warehouse", lambda e: e.pop())),
    "a cancelled order was shipped": ("shipped once", ledger("warehouse", lambda e: e.append(entry(2, "parcel", 2, 2)))),
    "a parcel with too few pieces": ("shipped once", ledger("warehouse", lambda e: put(e, 0, entry(1, "parcel", 1, 1)))),
    "a parcel for an unknown order": ("shipped once", ledger("warehouse", lambda e: e.append(entry(2, "parcel", 77, 1)))),
    "stock was not given back": ("stock is shipped", lambda b: put(b.reservations, 1, b.reservations[1]._replace(state="held"))),
    "stock went missing": ("stock is shipped", lambda b: put(b.stock, "cd-01", (10, 7))),
    "stock was given back twice": ("stock is shipped", lambda b: put(b.stock, "cd-01", (10, 10))),
    "reserved twice": ("stock is shipped", lambda b: b.reservations.append(b.reservations[0])),
    "a reservation is lost": ("stock is shipped", lambda b: b.reservations.pop(0)),
    "an order was not checked": ("fraud was checked", lambda b: b.frauds.pop(1)),
    "a rejected order was charged": ("fraud was checked", ledger("gateway", lambda e: e.append(entry(9, "charge", 4, 1)))),
    "a mail was not sent": ("every mail owed", ledger("mail", lambda e: e.pop())),
    "a mail was sent twice": ("every mail owed", ledger("mail", lambda e: e.append(e[0]))),
    "a mail of the wrong kind": ("every mail owed", ledger("mail", lambda e: put(e, 0, e[0]._replace(kind="cancelled")))),
    "the email service owes too much": ("every mail owed", lambda b: b.mails_owed.append((1, "refunded"))),
    "analytics counted once too often": ("analytics agrees", lambda b: put(b.totals, "placed", (6, 16000))),
    "analytics missed a refund": ("analytics agrees", lambda b: b.totals.pop("refunded")),
    "analytics lost a day": ("analytics agrees", lambda b: b.days.clear()),
    "support missed a VIP": ("support was told", lambda b: alerts(b).pop()),
    "support was told twice": ("support was told", lambda b: alerts(b).append(alerts(b)[0])),
    "support heard of somebody else": ("support was told", lambda b: alerts(b).append((2, "a VIP has ordered"))),
    "support was never there": ("support was told", lambda b: setattr(b, "alerts", None)),
    "a service lost an event": ("nothing lost", saw("payment", lambda s: s.pop())),
    "a service saw an event twice": ("nothing lost", saw("inventory", lambda s: s.append(s[-1]))),
    "a service saw an order's events out of order": ("nothing lost", saw("shipping", swapped)),
    "a service saw an event of a type that it doesn't read": ("nothing lost", saw("fraud", lambda s: s.append((1, 2)))),
    "a service was never there": ("nothing lost", lambda b: b.seen.pop("email")),
    "the log lost an order's beginning": ("the log tells", lambda b: b.log.pop(0)),
    "the log has an event twice": ("the log tells", lambda b: b.log.append(b.log[4]._replace(position=999))),
    "a request to the outside was never answered": (
        "the log tells",
        lambda b: setattr(b, "log", [e for e in b.log if e.type != "payment.PaymentRefunded"]),
    ),
    "the log has a refund before its charge": (
        "the log tells",
        lambda b: setattr(b, "log", [e._replace(position=0) if e.type == "payment.RefundRequested" else e for e in b.log]),
    ),
}


@pytest.mark.parametrize("what", SPOILED)
def test_spoiled_books_fail(what: str) -> None:
    failing, spoil = SPOILED[what]
    books = honest()
    spoil(books)
    result = reconcile(books, ORDERS)
    assert not result.passed
    assert any(check.name.startswith(failing) or failing in check.name for check in result.checks if not check.passed), [
        (check.name, check.problems) for check in result.checks if not check.passed
    ]


def test_a_reservation_of_a_shipped_order_must_have_been() -> None:
    books = honest()
    books.reservations.pop(0)
    books.stock["cd-01"] = (10, 10)  # so that the sums agree
    problems = [problem for check in reconcile(books, ORDERS).checks for problem in check.problems]
    assert problems == ["order 1 is shipped, its stock was never reserved"]


@pytest.mark.parametrize(
    "what",
    [
        "charged twice under two keys",
        "a refund is missing",
        "shipped twice",
        "stock was not given back",
        "never shipped",
    ],
)
def test_an_order_that_is_neither_through_nor_undone_is_broken(what: str) -> None:
    books = honest()
    SPOILED[what][1](books)
    assert broken_orders(books)


def test_empty_books_prove_nothing() -> None:
    books = Books(ledgers={name: Account([], 0, 0) for name in ("gateway", "warehouse", "mail")})
    assert not reconcile(books, ORDERS).passed


def test_books_of_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_books(f"sqlite:///{tmp_path}/nothing.db", tmp_path)
