"""A gateway process whose Redis can be stopped or slowed while chat goes on: what clients see before, during and after.

Both kinds of stall leave connections open, so that whoever asks waits: the worst that an outage can be.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx
from pydantic import SecretStr
from redis import Redis

from tests.fake_actor import WORDS, FakeActor
from tests.gateway_world import RECIPE
from tests.servers import RedisServer, free_port, serve, serve_redis, wait_until
from tests.slow_proxy import SlowProxy, slow_proxy
from vcllm.contracts.keys import Scope
from vcllm.stores.api_keys import KeyStore

Kind = Literal["stopped", "slow"]
SLOW_S = 5.0
"""How late every answer of a slowed Redis comes."""
CHAT_EVERY_S = 0.02
RECOVERY_S = 20.0
NUM_ADMINS = 100
ADMIN_EVERY_S = 0.01
PEPPER = SecretStr("pepper")
VERSION = "actor-2"


@dataclass(frozen=True)
class Answer:
    """What one request came to."""

    asked: float
    """By the monotonic clock."""
    seconds: float
    status: int
    body: str
    headers: httpx.Headers

    @property
    def overhead_s(self) -> float:
        """Of a chat: what the gateway itself took, looking up its key included."""
        return float(self.headers["x-vc-overhead-ms"]) / 1000

    @property
    def is_chat(self) -> bool:
        """A whole, right answer."""
        return self.status == 200 and "".join(WORDS) in self.body and self.headers.get("x-vc-version") == VERSION


@dataclass
class Seen:
    """Everything that was asked around one stall."""

    undisturbed: list[Answer]
    chats: list[Answer] = field(default_factory=list)
    refused: list[Answer] = field(default_factory=list)
    """Requests that need Redis, made while it was away."""
    live: list[Answer] = field(default_factory=list)
    ready: list[Answer] = field(default_factory=list)
    """In the order in which they were asked."""
    before: dict[str, Any] = field(default_factory=dict)
    """The job that was made before the stall."""
    after: dict[str, Any] = field(default_factory=dict)
    """The same job, read after it."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Of that job, after the stall."""
    made: Answer | None = None
    """A job made after the stall."""
    recovered_s: float = 0.0
    """From the stall's end until the gateway was ready."""


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[int(len(seconds) * 0.99)]


@dataclass
class World:
    """One gateway, its Redis behind a proxy, and a key that may do everything."""

    url: str
    redis: RedisServer
    proxy: SlowProxy
    key: str

    @contextmanager
    def stalled(self, kind: Kind) -> Iterator[None]:
        process = self.redis.process
        if kind == "slow":
            self.proxy.delay_s = SLOW_S
        else:
            process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.proxy.delay_s = 0.0
            process.send_signal(signal.SIGCONT)

    def watch(self, kind: Kind, stall_s: float, undisturbed_s: float) -> Seen:
        """Let Redis stall for a while and ask for everything meanwhile."""
        return asyncio.run(self._watch(kind, stall_s, undisturbed_s))

    async def _watch(self, kind: Kind, stall_s: float, undisturbed_s: float) -> Seen:
        limits = httpx.Limits(max_connections=2 * NUM_ADMINS)
        headers = {"authorization": f"Bearer {self.key}"}
        async with httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60, limits=limits) as http:
            job = (await http.post("/v1/jobs", json={"recipe": "tiny"})).raise_for_status().json()
            async with chatting(http) as undisturbed:
                await asyncio.gather(many_admins(http), asyncio.sleep(undisturbed_s))
            seen = Seen(undisturbed, before=job)
            async with chatting(http) as seen.chats, probing(http, seen):
                with self.stalled(kind):
                    begun = time.monotonic()
                    seen.refused += await many_admins(http)  # when nobody knows of the stall yet
                    while time.monotonic() < begun + stall_s:
                        seen.refused.append(await ask_admin(http, len(seen.refused)))
                        await asyncio.sleep(0.2)
                ended = time.monotonic()
                while (await http.get("/health/ready")).json() != {"status": "ok"}:
                    assert time.monotonic() < ended + RECOVERY_S, "the gateway did not recover"
                    await asyncio.sleep(0.05)
                seen.recovered_s = time.monotonic() - ended
            seen.made = await until_made(http)
            seen.after = (await http.get(f"/v1/jobs/{job['id']}")).raise_for_status().json()
            seen.events = (await http.get(f"/v1/jobs/{job['id']}/events")).raise_for_status().json()["data"]
            return seen


async def ask(http: httpx.AsyncClient, method: str, path: str, **more: Any) -> Answer:
    asked = time.monotonic()
    reply = await http.request(method, path, **more)
    return Answer(asked, time.monotonic() - asked, reply.status_code, reply.text, reply.headers)


async def many_admins(http: httpx.AsyncClient) -> list[Answer]:
    """So many that all of them wait at once, should they have to; asked one after the other, for the sake of chat."""
    asked = []
    for number in range(NUM_ADMINS):
        asked.append(asyncio.create_task(ask_admin(http, number)))
        await asyncio.sleep(ADMIN_EVERY_S)
    return await asyncio.gather(*asked)


async def ask_admin(http: httpx.AsyncClient, number: int) -> Answer:
    """One of the kinds of request that cannot do without Redis."""
    match number % 4:
        case 0:
            return await ask(http, "GET", "/v1/keys")
        case 1:
            return await ask(http, "POST", "/v1/keys", json={"name": "late", "scopes": ["chat"]})
        case 2:
            return await ask(http, "GET", "/v1/jobs")
        case _:
            return await ask(http, "POST", "/v1/jobs", json={"recipe": "tiny"})


async def until_made(http: httpx.AsyncClient) -> Answer:
    """Ready, the gateway may still refuse for a moment, until it has caught up with the other gateways' limits."""
    deadline = time.monotonic() + RECOVERY_S
    while (answer := await ask(http, "POST", "/v1/jobs", json={"recipe": "tiny"})).status == 503:
        assert time.monotonic() < deadline, answer.body
        await asyncio.sleep(0.2)
    return answer


@asynccontextmanager
async def chatting(http: httpx.AsyncClient) -> AsyncIterator[list[Answer]]:
    """Chats at a steady pace, whatever becomes of the ones before."""
    answers: list[Answer] = []
    asked: list[asyncio.Task[None]] = []
    body = {"model": "vc-llm", "messages": [{"role": "user", "content": "hello"}]}

    async def one() -> None:
        answers.append(await ask(http, "POST", "/v1/chat/completions", json=body))

    async def all_() -> None:
        while True:
            asked.append(asyncio.create_task(one()))
            await asyncio.sleep(CHAT_EVERY_S)

    asking = asyncio.create_task(all_())
    try:
        yield answers
    finally:
        asking.cancel()
        await asyncio.gather(*asked)


@asynccontextmanager
async def probing(http: httpx.AsyncClient, seen: Seen) -> AsyncIterator[None]:
    async def probe() -> None:
        while True:
            seen.live.append(await ask(http, "GET", "/health/live"))
            seen.ready.append(await ask(http, "GET", "/health/ready"))
            await asyncio.sleep(0.25)

    task = asyncio.create_task(probe())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextmanager
def stalled_world(folder: Path) -> Iterator[World]:
    """A real redis-server that keeps a file, a real gateway process, an Actor without a model."""
    (folder / "recipes").mkdir()
    (folder / "recipes" / "tiny.toml").write_text(RECIPE)
    actor = FakeActor(version=VERSION)
    with (
        serve_redis(folder, "--appendonly", "yes") as redis,
        slow_proxy(urlsplit(redis.url).port or 0) as proxy,
        serve(actor.app) as actor_url,
    ):
        with Redis.from_url(redis.url, decode_responses=True) as client:
            key, _ = KeyStore(client, PEPPER).create("everything", [Scope.ADMIN])
        port = free_port()
        told = {
            "VCLLM_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0",
            "VCLLM_HOME": str(folder / "var"),
            "VCLLM_RECIPES": str(folder / "recipes"),
            "VCLLM_ACTOR_URLS": actor_url,
            "VCLLM_INTERNAL_TOKEN": "internal",
            "VCLLM_PEPPER": PEPPER.get_secret_value(),
            "GATEWAY_PORT": str(port),
        }
        with gateway_process({**_outside(), **told}, folder / "gateway.log"):
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _is_ready(url), timeout_s=30)
            yield World(url, redis, proxy, key)


@contextmanager
def gateway_process(environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", "gateway"], env=environment, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _outside() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("VCLLM_", "GATEWAY_"))}


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready", timeout=2).json() == {"status": "ok"}
    except httpx.TransportError:
        return False
