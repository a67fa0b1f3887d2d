"""The replica table: traffic goes where it is served, new replicas are found, lost ones cost no answer."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack

import httpx
import pytest

from tests.fake_actor import FakeActor
from tests.servers import free_port, serve
from vcllm.contracts.problems import Unavailable
from vcllm.web import replicas
from vcllm.web.replicas import Address, Replica, ReplicaTable

BODY = b'{"messages": [{"role": "user", "content": "hello"}]}'
HEADERS = {"authorization": "Bearer internal", "content-type": "application/json"}


@pytest.fixture
def actors() -> Iterator[list[tuple[FakeActor, str]]]:
    with ExitStack() as stack:
        made = [FakeActor() for _ in range(3)]
        yield [(actor, stack.enter_context(serve(actor.app))) for actor in made]


def run(work: Callable[[ReplicaTable], Awaitable[None]], urls: list[str]) -> None:
    async def main() -> None:
        table = ReplicaTable(urls, headers=HEADERS, resolve_every_s=0.1, chance=random.Random(0))
        async with table:
            await work(table)

    asyncio.run(main())


async def ask(table: ReplicaTable) -> str:
    async with await table.send("POST", "/v1/chat/completions", content=BODY) as exchange:
        assert (await exchange.response.aread()).startswith(b'{"id"')
        return exchange.replica.name


def test_the_less_busy_of_two_is_chosen():
    """With two replicas, always the less busy one."""
    table = ReplicaTable(["http://a:1"])
    idle = Replica(Address("http://a:1"), httpx.AsyncClient())
    busy = Replica(Address("http://a:2"), httpx.AsyncClient(), in_flight=1)
    table.replicas = [busy, idle]

    assert {table.pick() for _ in range(20)} == {idle}
    assert table.pick(without={idle}) is busy
    assert table.pick(without={idle, busy}) is None


def test_one_that_is_down_is_spared_unless_all_are():
    """All down: any may have come back, so one is tried."""
    table = ReplicaTable(["http://a:1"])
    up = Replica(Address("http://a:1"), httpx.AsyncClient(), in_flight=9)
    down = Replica(Address("http://a:2"), httpx.AsyncClient(), up=False)
    table.replicas = [up, down]

    assert {table.pick() for _ in range(20)} == {up}
    up.up = False
    assert table.pick() in (up, down)


def test_traffic_is_shared(actors: list[tuple[FakeActor, str]]):
    """Sixty requests, ten at a time: each of three replicas gets its share."""

    async def work(table: ReplicaTable) -> None:
        names: list[str] = []
        for _ in range(6):
            names += await asyncio.gather(*(ask(table) for _ in range(10)))
        shares = Counter(names)
        assert len(shares) == 3
        assert min(shares.values()) >= 12
        assert all(replica.in_flight == 0 for replica in table.replicas)

    run(work, [url for _, url in actors])


def test_a_lost_replica_costs_no_answer(actors: list[tuple[FakeActor, str]]):
    """Nobody listens there: its requests go to another, and it is left alone."""
    dead = f"http://127.0.0.1:{free_port()}"

    async def work(table: ReplicaTable) -> None:
        await asyncio.gather(*(ask(table) for _ in range(10)))
        assert [replica.up for replica in table.replicas] == [False, True]

    run(work, [dead, actors[0][1]])


def test_with_no_replica_left_the_answer_is_unavailable():
    """And says when to come back."""

    async def work(table: ReplicaTable) -> None:
        with pytest.raises(Unavailable) as refused:
            await ask(table)
        assert refused.value.retry_after_s
        assert not table.any_up
        assert table.replicas[0].in_flight == 0

    run(work, [f"http://127.0.0.1:{free_port()}"])


def test_a_replica_that_is_not_ready_is_left_alone_until_it_is(actors: list[tuple[FakeActor, str]]):
    """It says so at /health/ready, before it goes away and after it has come."""
    actor = actors[0][0]

    async def work(table: ReplicaTable) -> None:
        actor.fault = "It is draining."
        await until(lambda: not table.any_up)
        actor.fault = None
        await until(lambda: table.any_up)

    run(work, [actors[0][1]])


def test_a_restarted_replica_is_found_again():
    """The connections kept open to the old process do no harm."""
    port = free_port()

    async def work(table: ReplicaTable) -> None:
        for _ in range(2):
            with serve(FakeActor().app, port):
                await until(lambda: table.any_up)
                await asyncio.gather(*(ask(table) for _ in range(3)))
            await until(lambda: not table.any_up)

    run(work, [f"http://127.0.0.1:{port}"])


def test_a_connection_that_breaks_is_opened_anew():
    """An idle connection closed under the request is no reason to refuse it or to spare the replica."""

    async def main() -> None:
        calls = 0

        async def serve_second(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal calls
            calls += 1
            await reader.readuntil(b"\r\n\r\n")
            if calls > 1:
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve_second, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, ReplicaTable([f"http://127.0.0.1:{port}"], resolve_every_s=60) as table:
            async with await table.send("GET", "/") as exchange:
                assert await exchange.response.aread() == b"ok"
            assert table.any_up

    asyncio.run(main())


def test_a_new_address_of_a_name_gets_traffic_and_a_gone_one_none(
    actors: list[tuple[FakeActor, str]], monkeypatch: pytest.MonkeyPatch
):
    """Replicas come and go behind one name; an answer under way on a gone one is finished."""
    addresses = [Address(url) for _, url in actors]
    listed = addresses[:2]
    monkeypatch.setattr(replicas, "look_up", lambda url: list(listed))

    async def work(table: ReplicaTable) -> None:
        async with await table.send("POST", "/v1/chat/completions", content=BODY) as under_way:
            leaving = under_way.replica
            listed[:] = [address for address in addresses if address is not leaving.address]
            await until(lambda: leaving not in table.replicas and len(table.replicas) == 2)
            assert await under_way.response.aread()
        await until(lambda: leaving.client.is_closed)
        assert {await ask(table) for _ in range(30)} == {replica.name for replica in table.replicas}

    run(work, ["http://actor:8201"])


def test_a_name_that_cannot_be_looked_up_for_a_while_keeps_its_replicas(
    actors: list[tuple[FakeActor, str]], monkeypatch: pytest.MonkeyPatch
):
    """The name server is away; the replicas are not."""
    found = [Address(actors[0][1])]

    def look_up(_: str) -> list[Address]:
        if not found:
            raise OSError("Temporary failure in name resolution")
        return list(found)

    monkeypatch.setattr(replicas, "look_up", look_up)

    async def work(table: ReplicaTable) -> None:
        found.clear()
        await asyncio.sleep(0.3)
        await ask(table)

    run(work, ["http://actor:8201"])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.02)
