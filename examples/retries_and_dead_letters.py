"""A handler that fails: its key is parked, other keys go on, and what used up its attempts is a dead letter until someone mends it."""

import asyncio

from tidings import App, Context, Event, Retry

app = App("post", store="sqlite:///post.db")


class LetterSent(Event, key="to"):
    to: str
    text: str


broken = {"ann"}
seen: asyncio.Queue[str] = asyncio.Queue()


@app.subscribe(LetterSent, retry=Retry(attempts=3, first=0.05, factor=2, jitter=0, give_up_on=(ValueError,)), on_dead="hold")
async def deliver(event: LetterSent, ctx: Context) -> None:
    if event.to in broken:
        await seen.put(f"{event.to}: {event.text!r} failed at attempt {ctx.attempt}")
        raise ConnectionError("nobody opens the door")
    await seen.put(f"{event.to}: {event.text!r} delivered at attempt {ctx.attempt}")


async def main() -> None:
    async with app:
        for to, text in (("ann", "one"), ("ann", "two"), ("bob", "one"), ("bob", "two")):
            await app.publish(LetterSent(to=to, text=text), tx="own")
        lines = [await seen.get() for _ in range(5)]  # three attempts for ann, two letters for bob
        for line in sorted(lines):
            print(line)

        # The dead letter holds its key: ann's second letter waits behind the first.
        parked = []
        for _ in range(100):
            parked = app.store.query(lambda unit: unit.parked("deliver"))
            if parked[0].state == "dead":
                break
            await asyncio.sleep(0.01)
        for row in parked:
            print(row.state, row.envelope.key, row.envelope.data.decode(), row.error)

        # Mend what was wrong, then ask for another try: `tidings dead retry` does the same.
        broken.clear()
        dead = parked[0]
        await asyncio.wrap_future(app.store.write(lambda unit: unit.retry_dead(dead.subscription, dead.envelope.position, dead.due)))
        print(await seen.get())
        print(await seen.get())


asyncio.run(main())
