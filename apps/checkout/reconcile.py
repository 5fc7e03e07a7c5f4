"""Did everything come out right? Computed from what the services wrote and, independently, from what the outside world did.

Each check is a function of the books and returns what is wrong, in words. An order ends in one of two ways: charged once and shipped once,
or cancelled with everything undone, the money back and the stock back on its shelf.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from apps.checkout.books import Books, Logged

# Which types each service reads. Said here once more, and not taken from the services: a forgotten subscription has to show.
READS: dict[str, frozenset[str]] = {
    "shop": frozenset(
        {"fraud.OrderRejected", "payment.PaymentDeclined", "inventory.OutOfStock", "shipping.ShipmentRefused", "shipping.OrderShipped"}
    ),
    "fraud": frozenset({"shop.OrderPlaced"}),
    "payment": frozenset(
        {"fraud.OrderApproved", "shop.OrderCancelled", "payment.PaymentCharged", "payment.PaymentDeclined", "payment.PaymentRefunded"}
    ),
    "inventory": frozenset({"shop.OrderPlaced", "shop.OrderCancelled", "shipping.OrderShipped"}),
    "shipping": frozenset(
        {
            "payment.PaymentCharged",
            "inventory.StockReserved",
            "shop.OrderCancelled",
            "shipping.OrderShipped",
            "shipping.ShipmentRefused",
        }
    ),
    "email": frozenset({"shop.OrderPlaced", "shop.OrderCancelled", "payment.PaymentRefunded", "shipping.OrderShipped"}),
    "analytics": frozenset({"shop.OrderPlaced", "shop.OrderCancelled", "payment.PaymentCharged", "payment.PaymentRefunded"}),
    "support": frozenset({"shop.OrderPlaced", "shop.OrderCancelled", "support.CallDue"}),
}

# What must stand in the log before what, for one order, whatever else happened in between.
BEFORE: tuple[tuple[str, str], ...] = (
    ("shop.OrderPlaced", "fraud.OrderApproved"),
    ("fraud.OrderApproved", "payment.PaymentRequested"),
    ("payment.PaymentRequested", "payment.PaymentCharged"),
    ("payment.PaymentCharged", "payment.RefundRequested"),
    ("shop.OrderCancelled", "payment.RefundRequested"),
    ("payment.RefundRequested", "payment.PaymentRefunded"),
    ("shop.OrderPlaced", "inventory.StockReserved"),
    ("shop.OrderCancelled", "inventory.StockReleased"),
    ("payment.PaymentCharged", "shipping.ShipmentRequested"),
    ("inventory.StockReserved", "shipping.ShipmentRequested"),
    ("shipping.ShipmentRequested", "shipping.OrderShipped"),
    ("shop.OrderCancelled", "support.CallDue"),
)

# What was asked of the outside must have been answered: these subscriptions keep no rows of their own that would show a gap.
ANSWERS: dict[str, frozenset[str]] = {
    "payment.PaymentRequested": frozenset({"payment.PaymentCharged", "payment.PaymentDeclined"}),
    "payment.RefundRequested": frozenset({"payment.PaymentRefunded"}),
    "shipping.ShipmentRequested": frozenset({"shipping.OrderShipped", "shipping.ShipmentRefused"}),
}


@dataclass(frozen=True, slots=True)
class Check:
    """``examined`` says how many things were looked at: a check that looked at nothing proves nothing."""

    name: str
    examined: int
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class Reconciliation:
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.passed for check in self.checks)


def reconcile(books: Books, placed: Collection[int]) -> Reconciliation:
    """Every check over the books; ``placed`` are the numbers of the orders that customers were told are taken."""
    return Reconciliation(
        (
            _check("every order taken is there once", len(placed), _orders_there(books, placed)),
            *outcome(books).checks,
            _check("analytics agrees with the orders", len(books.totals) + len(books.days), _analytics(books)),
            _check("support was told of every VIP", len(books.alerts or ()), _alerts(books)),
            _check("nothing lost, doubled or out of order", sum(map(len, books.seen.values())), _sequences(books)),
            _check("the log tells each order's story in order", len(books.log), _story(books, placed)),
            *_between_services(books),
        )
    )


def _between_services(books: Books) -> Iterator[Check]:
    """Where each service has a log of its own."""
    if books.logs:
        examined = sum(event.type in READS[service] for service, log in books.logs.items() for event in log)
        yield _check("every event crossed to who reads it, once", examined, _crossings(books))


def outcome(books: Books) -> Reconciliation:
    """The checks that ask only how orders ended, whatever kind of shop it was."""
    return Reconciliation(
        (
            _check("every order came to an end", len(books.orders), _ends(books)),
            _check("charged once net, or nothing", len(books.ledgers["gateway"].entries), _charges(books)),
            _check("shipped once, or not at all", len(books.ledgers["warehouse"].entries), _parcels(books)),
            _check("stock is shipped or on its shelf", len(books.reservations), _stock(books)),
            _check("fraud was checked before money moved", len(books.frauds), _fraud(books)),
            _check("every mail owed was sent once", len(books.ledgers["mail"].entries), _mails(books)),
        )
    )


def reconcile_sagas(books: Books, placed: Collection[int], sagas: Mapping[int, str]) -> Reconciliation:
    """Of a shop whose orders are sagas; ``sagas``: the state of each order's."""
    return Reconciliation(
        (
            _check("every order taken is there once", len(placed), _orders_there(books, placed)),
            _check("no saga in limbo", len(sagas), _limbo(books, sagas)),
            *outcome(books).checks,
        )
    )


def _limbo(books: Books, sagas: Mapping[int, str]) -> Iterator[str]:
    wanted = {"shipped": ("completed",), "cancelled": ("compensated", "cancelled")}
    for order in books.orders:
        state = sagas.get(order.order_id, "none")
        if state not in wanted.get(order.state, ()):
            yield f"order {order.order_id} is {order.state}, its saga {state}"
    for order_id in sorted(sagas.keys() - {order.order_id for order in books.orders}):
        yield f"there is a saga for order {order_id}, which the shop doesn't know"


def broken_orders(books: Books) -> set[int]:
    """The orders that are neither carried through (paid, sent, their stock gone) nor fully undone."""
    charged: Counter[int] = Counter()
    for entry in books.ledgers["gateway"].entries:
        charged[entry.order_id] += entry.amount
    parcels = Counter(entry.order_id for entry in books.ledgers["warehouse"].entries)
    held = {row.order_id for row in books.reservations if row.state in ("held", "shipped")}
    broken = set()
    for order in books.orders:
        through = charged[order.order_id] == order.cents and parcels[order.order_id] == 1 and order.order_id in held
        undone = charged[order.order_id] == 0 and parcels[order.order_id] == 0 and order.order_id not in held
        if not (through if order.state in ("placed", "shipped") else undone):
            broken.add(order.order_id)
    return broken


def _check(name: str, examined: int, problems: Iterator[str]) -> Check:
    return Check(name, examined, tuple(problems))


def _orders_there(books: Books, placed: Collection[int]) -> Iterator[str]:
    counts = Counter(order.order_id for order in books.orders)
    for order_id in sorted(set(placed) - counts.keys()):
        yield f"order {order_id} was taken and is lost"
    for order_id in sorted(counts.keys() - set(placed)):
        yield f"order {order_id} is there, but nobody placed it"
    for order_id, count in counts.items():
        if count > 1:
            yield f"order {order_id} is there {count} times"


def _ends(books: Books) -> Iterator[str]:
    for order in books.orders:
        if order.state not in ("shipped", "cancelled"):
            yield f"order {order.order_id} is still {order.state}"
        payment = books.payments.get(order.order_id, (0, "none"))[1]
        parcel = books.parcels.get(order.order_id, "none")
        if order.state == "shipped" and (payment, parcel) != ("charged", "shipped"):
            yield f"order {order.order_id} is shipped, its payment {payment}, its parcel {parcel}"
        if order.state == "cancelled" and (payment not in ("none", "void", "declined", "refunded") or parcel not in ("none", "cancelled")):
            yield f"order {order.order_id} is cancelled, its payment {payment}, its parcel {parcel}"


def _charges(books: Books) -> Iterator[str]:
    entries = books.ledgers["gateway"].entries
    net: Counter[int] = Counter()
    counts: Counter[tuple[int, str]] = Counter()
    for entry in entries:
        net[entry.order_id] += entry.amount
        counts[entry.order_id, entry.kind] += 1
    for (order_id, kind), count in counts.items():
        if count > 1:
            yield f"order {order_id} has {count} {kind}s in the gateway's ledger"
    known = {order.order_id for order in books.orders}
    for order_id in net.keys() - known:
        yield f"the gateway's ledger has order {order_id}, which the shop doesn't know"
    for order in books.orders:
        wanted = order.cents if order.state == "shipped" else 0
        if net[order.order_id] != wanted:
            yield f"order {order.order_id} is {order.state}: net charge {net[order.order_id]} cents, not {wanted}"
        if order.state == "shipped" and not counts[order.order_id, "charge"]:
            yield f"order {order.order_id} is shipped and was never charged"  # also when its total is 0


def _parcels(books: Books) -> Iterator[str]:
    sent = defaultdict(list)
    for entry in books.ledgers["warehouse"].entries:
        sent[entry.order_id].append(entry.amount)
    known = {order.order_id for order in books.orders}
    for order_id in sent.keys() - known:
        yield f"the warehouse sent a parcel for order {order_id}, which the shop doesn't know"
    for order in books.orders:
        wanted = [order.quantity] if order.state == "shipped" else []
        if sent[order.order_id] != wanted:
            yield f"order {order.order_id} is {order.state}: parcels of {sent[order.order_id]} pieces, not {wanted}"


def _stock(books: Books) -> Iterator[str]:
    known = {order.order_id: order for order in books.orders}
    gone: Counter[str] = Counter()
    for order_id, count in Counter(row.order_id for row in books.reservations).items():
        if count > 1:
            yield f"order {order_id} has {count} reservations"
    reserved = {row.order_id: row for row in books.reservations}
    for order in books.orders:
        row = reserved.get(order.order_id)
        if order.state == "shipped" and (row is None or row.state != "shipped"):
            yield f"order {order.order_id} is shipped, its stock {row.state if row else 'was never reserved'}"
    for row in books.reservations:
        if row.state in ("held", "shipped"):
            gone[row.sku] += row.quantity
        if row.order_id not in known or (known[row.order_id].state == "cancelled" and row.state in ("held", "shipped")):
            yield f"order {row.order_id} is not going to be shipped, its stock still {row.state}"
    for sku, (delivered, on_hand) in books.stock.items():
        if delivered - gone[sku] != on_hand:
            yield f"{sku}: {delivered} pieces came and {gone[sku]} went, but {on_hand} are on the shelf"


def _fraud(books: Books) -> Iterator[str]:
    charged = {entry.order_id for entry in books.ledgers["gateway"].entries}
    for order in books.orders:
        approved = books.frauds.get(order.order_id)
        if approved is None and (order.state != "cancelled" or order.order_id in charged):
            yield f"order {order.order_id} was never checked"
        if approved is False and (order.state != "cancelled" or order.order_id in charged):
            yield f"order {order.order_id} was rejected, but is {order.state}{' and was charged' * (order.order_id in charged)}"


def _mails(books: Books) -> Iterator[str]:
    refunded = {entry.order_id for entry in books.ledgers["gateway"].entries if entry.kind == "refund"}
    wanted: Counter[tuple[int, str]] = Counter()
    for order in books.orders:
        kinds = ["placed", "shipped"] if order.state == "shipped" else ["placed", "cancelled"]
        if order.order_id in refunded:
            kinds.append("refunded")
        wanted.update((order.order_id, kind) for kind in kinds)
    sent = Counter((entry.order_id, entry.kind) for entry in books.ledgers["mail"].entries)
    yield from _differences(wanted, Counter(books.mails_owed), "owed by the email service")
    yield from _differences(wanted, sent, "sent by the mail server")


def _differences(wanted: Counter[tuple[int, str]], found: Counter[tuple[int, str]], where: str) -> Iterator[str]:
    for order_id, kind in sorted(wanted.keys() | found.keys()):
        if wanted[order_id, kind] != found[order_id, kind]:
            yield f"order {order_id}: {found[order_id, kind]} mails '{kind}' {where}, not {wanted[order_id, kind]}"


def _analytics(books: Books) -> Iterator[str]:
    wanted: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    days: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def count(tally: dict[str, list[int]], name: str, cents: int) -> None:
        tally[name][0] += 1
        tally[name][1] += cents

    for order in books.orders:
        count(wanted, "placed", order.cents)
        count(days, order.ordered_on, order.cents)
        if order.state == "cancelled":
            count(wanted, f"cancelled: {order.reason}", order.cents)
    for entry in books.ledgers["gateway"].entries:
        count(wanted, {"charge": "charged", "refund": "refunded"}[entry.kind], abs(entry.amount))
    yield from _unequal("total", wanted, books.totals)
    yield from _unequal("day", days, books.days)


def _unequal(what: str, wanted: dict[str, list[int]], found: dict[str, tuple[int, int]]) -> Iterator[str]:
    for name in sorted(wanted.keys() | found.keys()):
        right, have = tuple(wanted.get(name, (0, 0))), found.get(name, (0, 0))
        if right != have:
            yield f"{what} '{name}': analytics has {have[0]} orders and {have[1]} cents, right is {right[0]} and {right[1]}"


def _alerts(books: Books) -> Iterator[str]:
    if books.alerts is None:
        yield "support was never there"
        return
    wanted: Counter[tuple[int, str]] = Counter()
    for order in books.orders:
        if order.vip:
            wanted[order.order_id, "a VIP has ordered"] += 1
            if order.state == "cancelled":
                wanted[order.order_id, f"cancelled: {order.reason}"] += 1
                wanted[order.order_id, "call the customer"] += 1
    found = Counter(books.alerts)
    for order_id, what in sorted(wanted.keys() | found.keys()):
        if wanted[order_id, what] != found[order_id, what]:
            yield f"order {order_id}: support was told '{what}' {found[order_id, what]} times, not {wanted[order_id, what]}"


def _sequences(books: Books) -> Iterator[str]:
    """Each service must have seen each of its events once, and an order's events in the order of the log."""
    for service, types in READS.items():
        if service not in books.seen:
            yield f"{service} was never there"
            continue
        wanted: dict[int, list[int]] = defaultdict(list)
        for event in books.logs.get(service, books.log):
            if event.type in types and (service != "support" or event.vip or event.type == "support.CallDue"):
                wanted[event.order_id].append(event.position)
        found: dict[int, list[int]] = defaultdict(list)
        for order_id, position in books.seen[service]:
            found[order_id].append(position)
        for order_id in sorted(wanted.keys() | found.keys()):
            if wanted[order_id] != found[order_id]:
                yield f"{service}, order {order_id}: {_how(wanted[order_id], found[order_id])}"


def _how(wanted: list[int], found: list[int]) -> str:
    lost, extra = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
    if lost:
        return f"lost the events at {_numbers(lost)}"
    if extra:
        return f"saw the events at {_numbers(extra)} too often"
    return f"saw its events as {_numbers(found)}, not as {_numbers(wanted)}"


def _numbers(positions: Iterable[int]) -> str:
    return ", ".join(map(str, positions))


def _crossings(books: Books) -> Iterator[str]:
    """Each log has, of the types that its service reads, what their publishers' logs have. In one log others' events stand in the order of
    their publisher's, for each order."""
    for service, log in books.logs.items():
        for topic in {name.partition(".")[0] for name in READS[service]} & books.logs.keys():
            theirs, ours = (
                [(event.order_id, event.type) for event in one if event.type.startswith(f"{topic}.")] for one in (books.logs[topic], log)
            )
            lost, extra = Counter(theirs) - Counter(ours), Counter(ours) - Counter(theirs)
            for (order_id, kind), count in (lost | extra).items():
                yield f"order {order_id}: {kind} {'is missing' if lost[order_id, kind] else f'came {count} times too often'} in {service}"
            if not lost and not extra and sorted(theirs, key=_order) != sorted(ours, key=_order):
                yield f"{service} has events of {topic} in another order than {topic}"


def _order(of: tuple[int, str]) -> int:
    return of[0]


def _story(books: Books, placed: Collection[int]) -> Iterator[str]:
    """A log that is a service's own tells its own part: what it published came behind what led to it."""
    for service, log in (books.logs or {"": books.log}).items():
        for problem in _story_of(log, service, placed):
            yield f"{service}: {problem}" if service else problem


def _story_of(log: Iterable[Logged], service: str, placed: Collection[int]) -> Iterator[str]:
    def is_own(kind: str) -> bool:
        return not service or kind.startswith(f"{service}.")

    stories: dict[int, dict[str, int]] = defaultdict(dict)
    counts: Counter[tuple[int, str]] = Counter()
    for event in log:
        stories[event.order_id].setdefault(event.type, event.position)
        counts[event.order_id, event.type] += 1
    for order_id in sorted(placed if is_own("shop.OrderPlaced") else ()):
        if counts[order_id, "shop.OrderPlaced"] != 1:
            yield f"order {order_id} was published {counts[order_id, 'shop.OrderPlaced']} times"
    for (order_id, kind), count in counts.items():
        if count > 1 and kind != "email.MailRequested":  # a mail is asked for at each turn, everything else happens once
            yield f"order {order_id} has {count} {kind}"
    for order_id, story in stories.items():
        for first, later in BEFORE:
            if is_own(later) and later in story and story.get(first, story[later]) >= story[later]:
                yield f"order {order_id}: {later} without {first} before it"
        for asked, answers in ANSWERS.items():
            if is_own(asked) and asked in story and not answers & story.keys():
                yield f"order {order_id}: {asked} at {story[asked]} was never answered"
