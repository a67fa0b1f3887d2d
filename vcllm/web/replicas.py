"""The replicas behind a list of addresses: found by name, chosen by load, left alone while they are down.

A host name with several addresses counts as several replicas, and is looked up again every two seconds, so
that replicas come and go without a restart. Knows nothing of what is asked of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import socket
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType

import httpx

from vcllm.contracts.problems import Unavailable

log = logging.getLogger(__name__)

RESOLVE_EVERY_S = 2.0
PROBE_TIMEOUT_S = 2.0
KEEP_ALIVE_S = 4.0
"""Below the servers' 5 s, so that an idle connection is closed by us and not under a request."""

NOT_THERE = (httpx.ConnectError, httpx.ConnectTimeout)
LOST = (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
"""Before the first byte of an answer: the connection broke, or was an idle one that the server had closed."""


@dataclass(frozen=True)
class Address:
    """One place to connect to."""

    url: str
    host: str | None = None
    """The name it was found by, for the `Host` header; None: the URL says it."""


def checked(urls: Iterable[str]) -> list[str]:
    """The same addresses, of which there must be one, each `http://` or `https://`; ValueError otherwise."""
    addresses = [url.rstrip("/") for url in urls]
    for url in addresses:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"'{url}' is not an address of a server. Write it as http://host:port.")
    if not addresses:
        raise ValueError("There is no address of a server. Name at least one, as http://host:port.")
    return addresses


def look_up(url: str) -> list[Address]:
    """Every address of the URL's host, one family only; OSError when the name is unknown.

    An https URL stays as it is: its certificate is bound to the name.
    """
    parsed = httpx.URL(url)
    if parsed.scheme != "http":
        return [Address(url)]
    found = socket.getaddrinfo(parsed.host, parsed.port or 80, type=socket.SOCK_STREAM)
    families = {family for family, *_ in found}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    hosts = sorted({str(where[0]) for kind, *_, where in found if kind == family})
    if hosts == [parsed.host]:
        return [Address(url)]
    return [Address(str(parsed.copy_with(host=host)).rstrip("/"), parsed.netloc.decode()) for host in hosts]


@dataclass(eq=False)
class Replica:
    """One server; `in_flight` counts the answers it has not finished."""

    address: Address
    client: httpx.AsyncClient
    in_flight: int = 0
    up: bool = True
    """False: nothing new is sent while another replica is up."""
    listed: bool = True
    """False: its name no longer leads to it; it is closed with its last answer."""
    name: str = field(init=False)
    """Says nothing about where it is."""

    def __post_init__(self) -> None:
        self.name = hashlib.sha256(self.address.url.encode()).hexdigest()[:8]


class Exchange:
    """An answer that has begun. `aclose` gives its connection back, or drops it when more is to come."""

    def __init__(self, replica: Replica, response: httpx.Response) -> None:
        self.replica = replica
        self.response = response
        self._open = True

    async def aclose(self) -> None:
        if self._open:
            self._open = False
            self.replica.in_flight -= 1
            await self.response.aclose()

    async def __aenter__(self) -> Exchange:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class ReplicaTable:
    """The replicas of one role. An async context manager: lookups and probes run while it is open."""

    def __init__(
        self,
        urls: Iterable[str],
        *,
        timeout: httpx.Timeout | None = None,
        headers: dict[str, str] | None = None,
        resolve_every_s: float = RESOLVE_EVERY_S,
        chance: random.Random | None = None,
    ) -> None:
        """headers: sent with every request, probes included."""
        self.urls = checked(urls)
        self.replicas: list[Replica] = []
        self._leaving: list[Replica] = []
        self._known: dict[str, list[Address]] = {}
        self._timeout = timeout or httpx.Timeout(600, connect=5)
        self._headers = headers or {}
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
            await replica.client.aclose()

    @property
    def any_up(self) -> bool:
        return any(replica.up for replica in self.replicas)

    async def send(
        self, method: str, path: str, *, content: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Exchange:
        """Begin an exchange; another replica is tried when the connection fails before the first byte.

        A connection lost under the request is opened anew once, for it may have been an idle one. Unavailable
        when every replica failed. A timeout while waiting for the answer passes through (httpx).
        """
        failed: set[Replica] = set()
        lost: set[Replica] = set()
        while replica := self.pick(failed):
            replica.in_flight += 1
            try:
                request = replica.client.build_request(method, path, content=content, headers=headers)
                return Exchange(replica, await replica.client.send(request, stream=True))
            except BaseException as error:
                replica.in_flight -= 1
                if isinstance(error, LOST) and replica not in lost:
                    lost.add(replica)
                elif isinstance(error, (*NOT_THERE, *LOST)):
                    failed.add(replica)
                    self._eject(replica, error)
                else:
                    raise
        raise Unavailable("No server that could answer is up. Try again in a moment.", retry_after_s=2)

    def pick(self, without: Collection[Replica] = ()) -> Replica | None:
        """The less busy of two drawn at random from those up, or from all when none is."""
        left = [replica for replica in self.replicas if replica not in without]
        candidates = [replica for replica in left if replica.up] or left
        if not candidates:
            return None
        pair = self._chance.sample(candidates, min(2, len(candidates)))
        return min(pair, key=lambda replica: replica.in_flight)

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
        headers = self._headers if address.host is None else {**self._headers, "host": address.host}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=KEEP_ALIVE_S)
        client = httpx.AsyncClient(
            base_url=address.url,
            headers=headers,
            timeout=self._timeout,
            limits=limits,
            verify=address.url.startswith("https:"),  # reading the certificates takes long, for nothing without TLS
            trust_env=False,
        )
        return Replica(address, client)

    async def _probe(self, replica: Replica) -> None:
        """Up when it says it is ready; a slow answer changes nothing, for a busy server is not a dead one."""
        try:
            reply = await replica.client.get("/health/ready", timeout=PROBE_TIMEOUT_S)
        except (*NOT_THERE, *LOST) as error:
            self._eject(replica, error)
        except httpx.HTTPError:
            return
        else:
            replica.up = reply.status_code == 200

    async def _close_left(self) -> None:
        for replica in [replica for replica in self._leaving if replica.in_flight == 0]:
            self._leaving.remove(replica)
            await replica.client.aclose()
