"""The outside world: idempotent by key, failing before and after the deed, the same for the same seed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from apps.checkout.http1 import Client, Refused, Request, Response, Server
from apps.checkout.ledger import Ledger, read_ledger
from apps.checkout.simulators import Gateway, MailServer, Simulator, Warehouse, World, declines, refuses

CALM = World(latency=0.0, fail=0.0, decline=0.0, refuse=0.0)


@asynccontextmanager
async def serving(tmp_path: Path, kind: type[Simulator], world: World) -> AsyncIterator[Client]:
    ledger = Ledger(tmp_path / "ledger.db")
    server = Server(kind(world, ledger).handle)
    await server.start()
    client = Client(f"127.0.0.1:{server.port}")
    try:
        yield client
    finally:
        client.close()
        await server.stop()
        ledger.close()


async def charge(client: Client, order_id: int, key: str, cents: int = 1000) -> Response:
    return await client.call("POST", "/charges", {"order_id": order_id, "cents": cents}, key=key)


async def test_the_same_key_has_the_same_effect_once(tmp_path: Path) -> None:
    async with serving(tmp_path, Gateway, CALM) as client:
        assert (await charge(client, 1, "a")).status == 201
        assert (await charge(client, 1, "a")).status == 201
        assert (await charge(client, 2, "b")).status == 201
    account = read_ledger(tmp_path / "ledger.db")
    assert [(entry.key, entry.order_id, entry.amount) for entry in account.entries] == [("a", 1, 1000), ("b", 2, 1000)]
    assert account.repeats == 1


async def test_a_key_belongs_to_one_request(tmp_path: Path) -> None:
    async with serving(tmp_path, Gateway, CALM) as client:
        await charge(client, 1, "a")
        assert (await charge(client, 1, "a", cents=1)).status == 400
        assert (await client.call("POST", "/charges", {"order_id": 1, "cents": 1})).status == 400
        assert (await client.call("POST", "/charges", [1], key="x")).status == 400
    assert len(read_ledger(tmp_path / "ledger.db").entries) == 1


async def test_another_key_is_charged_again(tmp_path: Path) -> None:
    """A gateway can't know better; the reconciliation has to."""
    async with serving(tmp_path, Gateway, CALM) as client:
        await charge(client, 1, "a")
        await charge(client, 1, "b")
    assert len(read_ledger(tmp_path / "ledger.db").entries) == 2


async def test_failures_come_before_and_after_the_deed_and_a_retry_gets_through(tmp_path: Path) -> None:
    statuses: set[str] = set()
    async with serving(tmp_path, Gateway, World(latency=0.0, fail=0.5, decline=0.0)) as client:
        for order_id in range(100):
            for _ in range(40):
                try:
                    assert (await charge(client, order_id, f"key {order_id}")).status == 201
                    break
                except Refused as error:
                    statuses.add(str(error).split(": ")[1][:3])
            else:
                pytest.fail("forty failures in a row")
    account = read_ledger(tmp_path / "ledger.db")
    assert statuses == {"502", "503"}
    assert len(account.entries) == 100
    assert account.repeats > 10
    assert account.outages > 50


async def test_declines_are_decided_by_the_seed_and_the_order(tmp_path: Path) -> None:
    world = World(seed=7, latency=0.0, fail=0.0, decline=0.3)
    async with serving(tmp_path, Gateway, world) as client:
        declined = {order_id for order_id in range(200) if (await charge(client, order_id, f"k{order_id}")).status == 402}
    assert declined == {order_id for order_id in range(200) if declines(world, order_id)}
    assert 30 < len(declined) < 90
    assert declined != {order_id for order_id in range(200) if declines(World(seed=8, decline=0.3), order_id)}


async def test_the_warehouse_sends_or_refuses(tmp_path: Path) -> None:
    world = World(seed=1, latency=0.0, fail=0.0, refuse=0.2)
    async with serving(tmp_path, Warehouse, world) as client:
        answers = [await client.call("POST", "/parcels", {"order_id": n, "quantity": 2}, key=f"k{n}") for n in range(100)]
        assert (await client.call("POST", "/boxes", {"order_id": 1}, key="x")).status == 404
    refused = {n for n, answer in enumerate(answers) if answer.status == 409}
    assert refused == {n for n in range(100) if refuses(world, n)}
    sent = read_ledger(tmp_path / "ledger.db").entries
    assert {entry.order_id for entry in sent} == set(range(100)) - refused
    assert {entry.amount for entry in sent} == {2}


async def test_mails_of_several_kinds_for_one_order(tmp_path: Path) -> None:
    async with serving(tmp_path, MailServer, CALM) as client:
        for kind in ("placed", "shipped"):
            answer = await client.call("POST", "/mails", {"order_id": 1, "customer_id": 9, "kind": kind}, key=f"1 {kind}")
            assert answer.status == 202
    assert [entry.kind for entry in read_ledger(tmp_path / "ledger.db").entries] == ["placed", "shipped"]


def test_a_missing_ledger_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_ledger(tmp_path / "nothing.db")


async def test_nobody_listens(tmp_path: Path) -> None:
    async with serving(tmp_path, Gateway, CALM) as client:
        await charge(client, 1, "a")
    with pytest.raises(Refused, match="nobody listens"):
        await charge(client, 2, "b")


async def test_no_answer_in_time_and_the_late_one_is_not_the_next_ones() -> None:
    async def slow(request: Request) -> Response:
        await asyncio.sleep(request.body)
        return Response(200, request.body)

    server = Server(slow)
    await server.start()
    client = Client(f"127.0.0.1:{server.port}", timeout=0.5)
    with pytest.raises(Refused, match="no answer within"):
        await client.call("POST", "/", 2)
    assert (await client.call("POST", "/", 0)).body == 0
    answers = await asyncio.gather(*(client.call("POST", "/", n / 10000) for n in range(50)))
    assert [answer.body for answer in answers] == [n / 10000 for n in range(50)]
    client.close()
    await server.stop()


async def test_what_is_no_request_is_refused() -> None:
    async def never(request: Request) -> Response:
        raise AssertionError("not reached")

    server = Server(never)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"GET / HTTP/1.1\r\nContent-Length: 3\r\n\r\n{{{")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    writer.close()
    await writer.wait_closed()
    await server.stop()
