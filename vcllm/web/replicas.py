"""The replicas behind a list of addresses: found by name, chosen by load, left alone while they fail.

A host name with several addresses counts as several replicas, and is looked up again every two seconds, so
that replicas come and go without a restart. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType

from vcllm.contracts.problems import Unavailable
from vcllm.web.addresses import KEEP_ALIVE_S, RESOLVE_EVERY_S, Address, checked, look_up
from vcllm.web.breaker import Breaker
from vcllm.web.http_client import Server
from vcllm.web.http_reply import BrokeOff, Lost, NotThere, Reply

log = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 2.0
MOST_SILENT = 5
"""Probes in a row without an answer, some four seconds each, after which a replica counts as hanging."""
REFUSALS = (429, 503)
"""Statuses of a server that has not begun: it is full, not ready, or about to end."""
MOST_REFUSALS = 3
"""So many replicas may refuse a request before the last refusal is taken for the answer."""
MOST_LOST = 2
"""So many replicas may take a request and be gone before they answer: it may be the request that ends them."""

Headers = Callable[[], Mapping[str, str]]


@dataclass(eq=False)
class Replica:
    """One server; `in_flight` counts the answers it has not finished."""

    address: Address
    client: Server
    in_flight: int = 0
    up: bool = True
    """False: it is not there or not ready; nothing new is sent while another replica is up."""
    silent: int = 0
    """Probes in a row that it did not answer."""
    listed: bool = True
    """False: its name no longer leads to it; it is closed with its last answer."""
    breaker: Breaker = field(default_factory=Breaker)
    name: str = field(init=False)
    """Says nothing about where it is."""

    def __post_init__(self) -> None:
        self.name = hashlib.sha256(self.address.url.encode()).hexdigest()[:8]

    @property
    def healthy(self) -> bool:
        return self.up and self.breaker.allows


class Exchange:
    """An answer that has begun. `close` gives its connection back, or drops it when more is to come."""

    def __init__(self, replica: Replica, reply: Reply) -> None:
        self.replica = replica
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._open = True

    async def read(self) -> bytes:
        """The whole body. BrokeOff; TimeoutError after a long silence."""
        try:
            body = await self._reply.read()
        except (BrokeOff, TimeoutError):
            self.replica.breaker.fail()
            raise
        self._is_complete()
        return body

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises what `read` does."""
        try:
            async for chunk in self._reply.chunks():
                yield chunk
        except (BrokeOff, TimeoutError):
            self.replica.breaker.fail()
            raise
        self._is_complete()

    def _is_complete(self) -> None:
        if self.status < 500:
            self.replica.breaker.succeed()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.replica.in_flight -= 1
            self._reply.close()

    def __enter__(self) -> Exchange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ReplicaTable:
    """The replicas of one role. An async context manager: lookups and probes run while it is open."""

    def __init__(
        self,
        urls: Iterable[str],
        *,
        silence_s: float = 600.0,
        headers: Headers = dict,
        resolve_every_s: float = RESOLVE_EVERY_S,
        chance: random.Random | None = None,
    ) -> None:
        """silence_s: longest wait for the next part of an answer. headers: of every request, probes included."""
        self.urls = checked(urls)
        self.replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self._known: dict[str, list[Address]] = {}
        self._silence_s = silence_s
        self._headers = headers
        self._resolve_every_s = resolve_every_s
        self._chance = chance or random.Random()
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> ReplicaTable:
        await self._resolve()
        self._watch = asyncio.create_task(self._keep_watch())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watch is not None
        self._watch.cancel()
        with suppress(asyncio.CancelledError):
            await self._watch
        for replica in [*self.replicas, *self._leaving]:
            await replica.client.close()

    @property
    def any_up(self) -> bool:
        return any(replica.up for replica in self.replicas)

    async def send(
        self, method: str, path: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Exchange:
        """Begin an exchange; another replica is tried when one fails before the first byte, or refuses to begin.

        Unavailable when every replica failed, TimeoutError when the one that has the request says nothing for too long.
        """
        with ExitStack() as held:
            exchange = await self._try_each(method, path, content, {**self._headers(), **(headers or {})}, held)
            held.pop_all()
        return exchange

    async def _try_each(
        self, method: str, path: str, content: bytes | None, headers: Mapping[str, str], held: ExitStack
    ) -> Exchange:
        """The answer, or the last refusal. held: the one there is meanwhile, should its client leave."""
        tried: set[Replica] = set()
        refusal: Exchange | None = None
        refused = num_gone = 0
        while refused < MOST_REFUSALS and num_gone < MOST_LOST:
            replica = self.pick(tried, desperate=refusal is None)
            if replica is None:
                break
            try:
                exchange = await self._begin(replica, method, path, content, headers)
            except (NotThere, Lost) as error:
                num_gone += isinstance(error, Lost)
                tried.add(replica)
                self._eject(replica, error)
                continue
            held.close()
            held.callback(exchange.close)
            if exchange.status not in REFUSALS:
                return exchange
            tried.add(replica)
            replica.up = replica.up and exchange.status != 503
            refused += 1
            refusal = exchange
        if refusal is not None:
            return refusal
        if num_gone:
            raise Unavailable("Servers that were asked were gone before they answered. Try again.", retry_after_s=2)
        raise Unavailable("No server that could answer is up. Try again in a moment.", retry_after_s=2)

    def pick(self, without: Collection[Replica] = (), *, desperate: bool = True) -> Replica | None:
        """The less busy of two drawn at random from those that are well; when none is, from all if `desperate`."""
        left = [replica for replica in self.replicas if replica not in without] if without else self.replicas
        candidates = [replica for replica in left if replica.healthy] or (left if desperate else [])
        if not candidates:
            return None
        if len(candidates) == 1:
            return candidates[0]
        one, other = self._chance.sample(candidates, 2)
        return one if one.in_flight <= other.in_flight else other

    async def _begin(
        self, replica: Replica, method: str, path: str, content: bytes | None, headers: Mapping[str, str]
    ) -> Exchange:
        """The breaker and the count know of it until the exchange is closed."""
        replica.in_flight += 1
        breaker = replica.breaker
        breaker.begin()
        try:
            reply = await replica.client.request(method, path, headers=headers, content=content)
        except BaseException as error:
            replica.in_flight -= 1
            if isinstance(error, Lost | TimeoutError):  # whether it is there at all, probes say: it may just start
                breaker.fail()
            else:
                breaker.give_up()
            raise
        if reply.status >= 500 and reply.status not in REFUSALS:
            breaker.fail()
        else:
            breaker.answered()
        return Exchange(replica, reply)

    def _eject(self, replica: Replica, error: BaseException) -> None:
        if replica.up:
            replica.up = False
            log.warning("Replica %s is left alone: %s.", replica.name, type(error).__name__)

    async def _keep_watch(self) -> None:
        while True:
            await asyncio.sleep(self._resolve_every_s)
            await self._resolve()
            await asyncio.gather(*(self._probe(replica) for replica in self.replicas))
            await self._close_left()

    async def _resolve(self) -> None:
        """Look the names up again. A name that cannot be found now keeps the addresses it had."""
        for url in self.urls:
            try:
                self._known[url] = await asyncio.to_thread(look_up, url)
            except OSError as error:
                self._known.setdefault(url, [Address(url)])
                log.warning("The host name of a replica cannot be looked up: %s.", error)
        wanted = list(dict.fromkeys(address for url in self.urls for address in self._known[url]))
        have = {replica.address: replica for replica in self.replicas}
        for address, replica in have.items():
            if address not in wanted:
                replica.listed = False
                self._leaving.append(replica)
        self.replicas = [have.get(address) or self._open(address) for address in wanted]

    def _open(self, address: Address) -> Replica:
        server = Server(address.url, host=address.host, silence_s=self._silence_s, keep_alive_s=KEEP_ALIVE_S)
        # Whoever comes later may still be starting: it gets nothing before its first probe, which comes next.
        return Replica(address, server, up=self._watch is None)

    async def _probe(self, replica: Replica) -> None:
        """Up when it says it is ready; a slow answer changes nothing, for a busy server is not a dead one.

        One that does not answer again and again hangs, and would keep every chat it gets.
        """
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reply = await replica.client.request("GET", "/health/ready", headers=self._headers())
        except (NotThere, Lost) as error:
            self._eject(replica, error)
        except TimeoutError as error:
            replica.silent += 1
            if replica.silent >= MOST_SILENT:
                self._eject(replica, error)
        else:
            replica.silent = 0
            replica.up = reply.status == 200
            with suppress(BrokeOff, TimeoutError):
                await asyncio.wait_for(reply.read(), PROBE_TIMEOUT_S)
            reply.close()

    async def _close_left(self) -> None:
        for replica in [replica for replica in self._leaving if replica.in_flight == 0]:
            self._leaving.remove(replica)
            await replica.client.close()
