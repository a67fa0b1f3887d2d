"""The replica table: traffic goes where it is served, new replicas are found, lost ones cost no answer."""

from __future__ import annotations

import asyncio
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, suppress
from typing import Any

import pytest
from pydantic import SecretStr

from tests.fake_actor import FakeActor
from tests.servers import free_port, serve
from vcllm.contracts.problems import Unavailable
from vcllm.web import replicas
from vcllm.web.addresses import Address
from vcllm.web.breaker import FAILURES, BreakerState
from vcllm.web.http_reply import BrokeOff
from vcllm.web.replicas import Replica, ReplicaTable
from vcllm.web.tokens import Signer

BODY = b'{"messages": [{"role": "user", "content": "hello"}]}'
SIGNER = Signer(SecretStr("internal"), "gateway")
SESSION: Any = None
"""Of a replica that is never asked."""


@pytest.fixture
def actors() -> Iterator[list[tuple[FakeActor, str]]]:
    with ExitStack() as stack:
        made = [FakeActor() for _ in range(3)]
        yield [(actor, stack.enter_context(serve(actor.app))) for actor in made]


def headers() -> dict[str, str]:
    return {**SIGNER.headers("actor"), "content-type": "application/json"}


def run(work: Callable[[ReplicaTable], Awaitable[None]], urls: list[str]) -> None:
    async def main() -> None:
        table = ReplicaTable(urls, headers=headers, resolve_every_s=0.1, chance=random.Random(0))
        async with table:
            await work(table)

    asyncio.run(main())


async def ask(table: ReplicaTable) -> str:
    with await table.send("POST", "/v1/chat/completions", content=BODY) as exchange:
        assert (await exchange.read()).startswith(b'{"id"')
        return exchange.replica.name


def test_the_less_busy_of_two_is_chosen():
    """With two replicas, always the less busy one."""
    table = ReplicaTable(["http://a:1"])
    idle = Replica(Address("http://a:1"), SESSION)
    busy = Replica(Address("http://a:2"), SESSION, in_flight=1)
    table.replicas = [busy, idle]

    assert {table.pick() for _ in range(20)} == {idle}
    assert table.pick(without={idle}) is busy
    assert table.pick(without={idle, busy}) is None


def test_one_that_is_down_is_spared_unless_all_are():
    """All down: any may have come back, so one is tried."""
    table = ReplicaTable(["http://a:1"])
    up = Replica(Address("http://a:1"), SESSION, in_flight=9)
    down = Replica(Address("http://a:2"), SESSION, up=False)
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


def test_a_replica_that_hangs_is_left_alone_until_it_answers(
    actors: list[tuple[FakeActor, str]], monkeypatch: pytest.MonkeyPatch
):
    """It takes connections and never answers, as a stopped process does: one slow probe changes nothing, five do."""
    monkeypatch.setattr(replicas, "PROBE_TIMEOUT_S", 0.05)

    async def work(table: ReplicaTable) -> None:
        taken: list[asyncio.StreamWriter] = []
        hanging = await asyncio.start_server(lambda _, writer: taken.append(writer), "127.0.0.1", port)
        await asyncio.sleep(0.3)
        hung = next(replica for replica in table.replicas if replica.address.url.endswith(str(port)))
        hung.up = True
        assert 0 < hung.silent < replicas.MOST_SILENT
        assert hung.up
        while hung.up:
            await asyncio.sleep(0.05)
        assert hung.silent == replicas.MOST_SILENT
        assert {table.pick() for _ in range(20)} == {replica for replica in table.replicas if replica is not hung}
        hanging.close()
        for writer in taken:
            writer.close()
        await asyncio.sleep(0.05)

    port = free_port()
    run(work, [f"http://127.0.0.1:{port}", actors[0][1]])


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
        connections = 0

        async def serve_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """The second request of a connection finds it closed."""
            nonlocal connections
            connections += 1
            with closing(writer), suppress(asyncio.IncompleteReadError):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(OK)
                await reader.readuntil(b"\r\n\r\n")

        server = await asyncio.start_server(serve_once, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        async with server, ReplicaTable([f"http://127.0.0.1:{port}"], resolve_every_s=60) as table:
            for _ in range(2):
                with await table.send("GET", "/") as exchange:
                    assert await exchange.read() == b"ok"
            assert table.any_up
            assert connections == 2
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_new_address_of_a_name_gets_traffic_and_a_gone_one_none(
    actors: list[tuple[FakeActor, str]], monkeypatch: pytest.MonkeyPatch
):
    """Replicas come and go behind one name; an answer under way on a gone one is finished."""
    addresses = [Address(url) for _, url in actors]
    listed = addresses[:2]
    monkeypatch.setattr(replicas, "look_up", lambda url: list(listed))

    async def work(table: ReplicaTable) -> None:
        with await table.send("POST", "/v1/chat/completions", content=BODY) as under_way:
            leaving = under_way.replica
            listed[:] = [address for address in addresses if address is not leaving.address]
            await until(lambda: leaving not in table.replicas and len(table.replicas) == 2)
            assert await under_way.read()
        await until(lambda: leaving.client.closed)
        assert {await ask(table) for _ in range(30)} == {replica.name for replica in table.replicas}

    run(work, ["http://actor:8201"])


def test_a_replica_that_starts_is_asked_as_soon_as_it_is_ready(
    actors: list[tuple[FakeActor, str]], monkeypatch: pytest.MonkeyPatch
):
    """Its address is known before it listens: that it was tried meanwhile is not held against it."""
    port = free_port()
    old, new = Address(actors[0][1]), Address(f"http://127.0.0.1:{port}")
    listed = [old]
    monkeypatch.setattr(replicas, "look_up", lambda url: list(listed))

    async def work(table: ReplicaTable) -> None:
        listed.append(new)
        await until(lambda: len(table.replicas) == 2)
        begins = table.replicas[1]
        for _ in range(30):
            begins.up = True
            assert await asyncio.gather(*(ask(table) for _ in range(8)))
        assert begins.breaker.state is BreakerState.CLOSED
        with serve(FakeActor().app, port):
            await until(lambda: begins.up)
            assert begins.name in {await ask(table) for _ in range(30)}

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


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[tuple[str, list[int]]]:
    """A server that gives these raw answers in turn, the last one for ever; its address and how often it was asked."""
    asked, handlers = [0], set[asyncio.Task[None] | None]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"GET /health"):
                    writer.write(OK)
                    continue
                length = re.search(rb"content-length: (\d+)", head.lower())
                await reader.readexactly(int(length[1]) if length else 0)
                writer.write(answers[min(asked[0], len(answers) - 1)])
                asked[0] += 1
                await writer.drain()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        await asyncio.gather(*(task for task in handlers if task is not None), return_exceptions=True)
        await asyncio.sleep(0)


OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
FULL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nfull"
ENDING = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 6\r\n\r\nending"
BUG = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 3\r\n\r\nbug"


@pytest.mark.parametrize("refusal", [FULL, ENDING], ids=["full", "ending"])
def test_what_one_replica_refuses_another_is_asked(refusal: bytes):
    """It has not begun, so nothing is done twice."""

    async def main() -> None:
        statuses = []
        async with (
            answering(refusal) as (full, _),
            answering(OK) as (free, _),
            ReplicaTable([full, free], resolve_every_s=60) as table,
        ):
            for _ in range(20):
                with await table.send("POST", "/x", content=b"{}") as exchange:
                    statuses.append(exchange.status)
                    await exchange.read()
        assert statuses == [200] * 20
        assert all(replica.in_flight == 0 for replica in table.replicas)

    asyncio.run(main())


def test_when_all_refuse_the_last_refusal_is_the_answer():
    """At most three are asked, however many there are: a full fleet must not be asked all over."""

    async def main() -> None:
        async with AsyncExitStack() as stack:
            servers = [await stack.enter_async_context(answering(FULL)) for _ in range(5)]
            table = await stack.enter_async_context(ReplicaTable([url for url, _ in servers], resolve_every_s=60))
            with await table.send("POST", "/x", content=b"{}") as exchange:
                assert exchange.status == 429
                assert await exchange.read() == b"full"
            assert sum(asked[0] for _, asked in servers) == 3
            assert all(replica.in_flight == 0 for replica in table.replicas)

    asyncio.run(main())


def test_one_that_fails_again_and_again_is_spared():
    """Its health is fine, its answers are not: after five of them in a row the others get the traffic."""

    async def main() -> None:
        async with (
            answering(BUG) as (bad, asked),
            answering(OK) as (good, _),
            ReplicaTable([bad, good], resolve_every_s=60, chance=random.Random(0)) as table,
        ):
            for _ in range(60):
                with await table.send("POST", "/x", content=b"{}") as exchange:
                    await exchange.read()
        assert asked[0] == 5

    asyncio.run(main())


def test_one_whose_answers_break_off_says_so_and_is_spared():
    """They begin well each time, which clears nothing: the fifth in a row that is not whole opens its breaker."""

    async def main() -> None:
        cut = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\nconnection: close\r\n\r\nhalf"

        async def break_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(cut)
            writer.close()

        async with await asyncio.start_server(break_off, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            async with ReplicaTable([url], resolve_every_s=60) as table:
                breaker = table.replicas[0].breaker
                for number in range(FAILURES):
                    assert breaker.state is BreakerState.CLOSED, number
                    with await table.send("GET", "/") as exchange, pytest.raises(BrokeOff):
                        await exchange.read()
                assert breaker.state is BreakerState.OPEN
                assert table.replicas[0].in_flight == 0

    asyncio.run(main())


def test_a_request_that_ends_servers_is_given_to_two():
    """Whoever reads it hangs up: the third, and all that come after, never see it."""

    async def main() -> None:
        asked = 0

        async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST")
            writer.close()

        async with AsyncExitStack() as stack:
            urls = []
            for _ in range(6):
                server = await stack.enter_async_context(await asyncio.start_server(die, "127.0.0.1", 0))
                urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
            table = await stack.enter_async_context(ReplicaTable(urls, resolve_every_s=60))
            with pytest.raises(Unavailable, match="gone before they answered"):
                await table.send("POST", "/x", content=b"")
        assert asked == replicas.MOST_LOST

    asyncio.run(main())


def test_who_leaves_while_another_replica_is_asked_leaves_nothing():
    """The refusal of the first is still open then: its connection and its place are given back."""

    async def main() -> None:
        async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with (
            answering(FULL) as (full, asked),
            await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent,
            ReplicaTable([full, f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}"], resolve_every_s=60) as table,
        ):
            while not asked[0]:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await table.send("POST", "/x", content=b"{}")
            assert [replica.in_flight for replica in table.replicas] == [0, 0]
        await asyncio.sleep(0.05)

    asyncio.run(main())


def test_a_bug_is_not_asked_again_elsewhere():
    """It may have done its work before it failed."""

    async def main() -> None:
        async with answering(BUG) as (bad, asked), ReplicaTable([bad, bad + "/"], resolve_every_s=60) as table:
            with await table.send("POST", "/x", content=b"{}") as exchange:
                assert exchange.status == 500
            assert asked[0] == 1

    asyncio.run(main())


def test_when_all_breakers_are_open_one_is_tried_anyway():
    """Better a try than a refusal that is certain."""

    async def main() -> None:
        async with answering(*[BUG] * 5, OK) as (url, _), ReplicaTable([url], resolve_every_s=60) as table:
            for _ in range(5):
                with await table.send("POST", "/x", content=b"{}"):
                    pass
            assert not table.replicas[0].healthy
            with await table.send("POST", "/x", content=b"{}") as exchange:
                assert exchange.status == 200
            assert table.replicas[0].healthy

    asyncio.run(main())


def test_a_redirect_is_not_followed():
    """A server of ours has no business sending us elsewhere."""
    moved = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n"

    async def main() -> None:
        async with answering(moved) as (url, _), ReplicaTable([url], resolve_every_s=60) as table:
            with await table.send("POST", "/x", content=b"{}") as exchange:
                assert exchange.status == 307

    asyncio.run(main())
