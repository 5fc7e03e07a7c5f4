"""Order: one key's events run one after another, across event types; keys run side by side."""

import asyncio

from tidings import App, Event

app = App("bank", store="sqlite:///bank.db")


class Deposited(Event, key="account"):
    account: str
    amount: int


class Withdrawn(Event, key="account"):
    account: str
    amount: int


ledger = app.subscription("ledger", concurrency=8)
balances: dict[str, list[int]] = {}
running = most = 0
ended = asyncio.Semaphore(0)


async def book(account: str, change: int) -> None:
    global running, most
    running += 1
    most = max(most, running)
    history = balances.setdefault(account, [0])
    balance = history[-1]
    await asyncio.sleep(0.01)  # were two of one account running now, one change would be lost
    history.append(balance + change)
    running -= 1
    ended.release()


@ledger.on(Deposited)
async def deposit(event: Deposited) -> None:
    await book(event.account, event.amount)


@ledger.on(Withdrawn)
async def withdraw(event: Withdrawn) -> None:
    await book(event.account, -event.amount)


async def main() -> None:
    accounts = [f"account {number}" for number in range(20)]
    for account in accounts:
        for event in (Deposited(account=account, amount=100), Withdrawn(account=account, amount=30), Deposited(account=account, amount=5)):
            app.publish(event, tx="own").result()
    async with app:
        for _ in range(3 * len(accounts)):
            await ended.acquire()
    print({tuple(history) for history in balances.values()})
    print("handlers side by side:", "several" if most > 1 else "one")


asyncio.run(main())
