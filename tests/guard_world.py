"""A gateway with a guard for tests: an Actor that says what it is told to, and a Critic that judges by words.

Both are on real sockets, as is the gateway; the Actor's frames are those that the real one writes.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from fastapi import Depends, FastAPI, Request, Response
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app
from gateway.settings import GatewaySettings
from services.actor.frames import FrameWriter, Head
from tests.gateway_world import PEPPER
from tests.servers import serve
from vcllm.charter.load import SHIPPED
from vcllm.contracts.base import digest
from vcllm.contracts.chat import ChatReply, ChatRequest, Choice, ReplyMessage, Usage
from vcllm.contracts.critiques import SCORED, Critique, CritiqueItem, CritiqueReply, CritiqueRequest, Outcome
from vcllm.contracts.guard import GuardMode
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import Unavailable
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import KEYS
from vcllm.web.app import create_service
from vcllm.web.auth import services_only
from vcllm.web.disconnect import cancel_on_disconnect
from vcllm.web.health import add_health
from vcllm.web.sse import DONE, stream_response
from vcllm.web.usage import USAGE_HEADER, usage_comment

BAD = "BAD"
"""A word that makes an answer violating."""
REFUSAL_EN, REFUSAL_ZH = "This is not shown.", "此回答不予显示。"
HEAD = Head("chat-7", 1, "actor-2", "fp-1")


class ScriptedActor:
    """Says its script; each answer is a list of pieces."""

    def __init__(self) -> None:
        self.app = service("actor")
        self.app.post("/v1/chat/completions", dependencies=internal("actor"))(self.chat)
        self.say(["Fine."])

    def say(self, *answers: Sequence[str], pace_s: float = 0.0, breaks: bool = False) -> None:
        """pace_s: between pieces. breaks: the stream fails before its end."""
        self.answers = answers
        self.pace_s = pace_s
        self.breaks = breaks
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0
        self.num_said = 0
        """Pieces of a stream that were sent."""

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.headers.append(dict(request.headers))
        stamps = {"x-vc-version": HEAD.model}
        if body.stream:
            tell = USAGE_HEADER in request.headers
            return stream_response(self.frames(body.stream_options.include_usage, tell), stamps)
        reply = await cancel_on_disconnect(request, self.reply(body))
        return Response(reply.model_dump_json(), media_type="application/json", headers=stamps)

    async def reply(self, body: ChatRequest) -> ChatReply:
        await self.wait()
        choices = [
            Choice(index=index, message=ReplyMessage(content="".join(pieces)), finish_reason="stop")
            for index, pieces in enumerate(self.answers)
        ]
        usage = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
        return ChatReply(id=HEAD.id, created=1, model=HEAD.model, choices=choices, usage=usage)

    async def frames(self, include_usage: bool, tell_usage: bool) -> AsyncIterator[bytes]:
        write = FrameWriter(HEAD, len(self.answers), include_usage)
        yield b"".join(map(write.role, range(len(self.answers))))
        for place in range(max(map(len, self.answers))):
            await self.wait()
            for index, pieces in enumerate(self.answers):
                if place < len(pieces):
                    self.num_said += 1
                    yield write.text(index, pieces[place], None)
        if self.breaks:
            raise Unavailable("The engine has died.")
        yield b"".join(write.finish(index, "stop") for index in range(len(self.answers)))
        usage = write.usage(3, 4) if include_usage else b""
        yield usage + (usage_comment(3, 4) if tell_usage else b"") + DONE

    async def wait(self) -> None:
        try:
            await asyncio.sleep(self.pace_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class FakeCritic:
    """What has `BAD` in it is violating, `UNSURE` unscored, `NO` a refusal; anything else is consistent.

    An answer without an end mark is broken, as beginnings are to a real Critic.
    """

    def __init__(self) -> None:
        self.app = service("critic")
        self.app.post("/v1/critiques", dependencies=internal("critic"))(self.critique)
        self.reset()

    def reset(self) -> None:
        self.fault: str | None = None
        """`down`, `slow`, `late`, `short` (one critique is missing), `page`, `unreadable`."""
        self.pace_s = 0.0
        self.seen: list[CritiqueItem] = []
        self.headers: list[dict[str, str]] = []
        self.cancelled = 0

    async def critique(self, body: CritiqueRequest, request: Request) -> Response:
        self.seen += body.items
        self.headers.append(dict(request.headers))
        match self.fault:
            case "down":
                return Response("{}", 500)
            case "late":
                return Response("{}", 504)
            case "page":
                return Response("<html>", 200)
            case "unreadable":
                return Response("{}", 400)
        await cancel_on_disconnect(request, self.think())
        critiques = [judged(item.response) for item in body.items][: -1 if self.fault == "short" else None]
        reply = CritiqueReply(critiques=critiques, critic_version="critic-5")
        return Response(reply.model_dump_json(), media_type="application/json")

    async def think(self) -> None:
        try:
            await asyncio.sleep(60 if self.fault == "slow" else self.pace_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def judged(text: str) -> Critique:
    if "UNSURE" in text:
        return Critique(outcome=Outcome.UNSCORED, failure="off_scale")
    outcome = Outcome.CONSISTENT if text.rstrip().endswith((".", "。", "!")) else Outcome.BROKEN
    outcome = Outcome.VIOLATING if BAD in text else Outcome.REFUSAL if "NO" in text else outcome
    shares = {each: 0.7 if each is outcome else 0.1 for each in SCORED}
    return Critique(outcome=outcome, score=shares[Outcome.CONSISTENT], probabilities=shares)


def service(role: str) -> FastAPI:
    app = create_service(role, lifespan=None)
    add_health(app, ready=lambda: None)
    return app


def internal(role: Any) -> list[Any]:
    return [Depends(services_only(SecretStr("internal"), role))]


@dataclass
class GuardWorld:
    """What the tests have running, and gateways in front of it."""

    redis: Redis
    settings: Settings
    actor: ScriptedActor
    critic: FakeCritic
    stack: ExitStack
    urls: dict[str, str] = field(default_factory=dict)

    def gateway(self, **policy: Any) -> httpx.Client:
        """A client of a gateway whose charter has such a guard; the same policy is the same gateway."""
        timeout_s = policy.pop("timeout_s", 10.0)
        charter = self.charter(**policy)
        name = f"{charter} {timeout_s}"
        if name not in self.urls:
            limits = GatewaySettings(alias_ttl_s=0, charter=charter, guard_timeout_s=timeout_s)
            self.urls[name] = self.stack.enter_context(serve(create_app(self.settings, limits)))
        return self.client(self.urls[name])

    def charter(self, **policy: Any) -> str:
        """The name of a charter that has such a guard."""
        name = digest(policy)[:16]
        if self.settings.charters is not None and not (self.settings.charters / name).is_dir():
            write_charter(self.settings.charters, name, policy)
        return name

    def client(self, url: str, mode: GuardMode | None = None, scope: Scope = Scope.CHAT) -> httpx.Client:
        """mode: of the key."""
        headers = {"authorization": f"Bearer {self.key(mode, scope)}"}
        return self.stack.enter_context(httpx.Client(base_url=url, headers=headers, timeout=10))

    def key(self, mode: GuardMode | None = None, scope: Scope = Scope.CHAT) -> str:
        key, record = KeyStore(self.redis, PEPPER).create("test", [scope])
        for stored, raw in self.redis.hgetall(KEYS).items():
            if KeyRecord.model_validate_json(raw).id == record.id:
                changed = record.model_copy(update={"guard": mode})
                self.redis.hset(KEYS, stored, changed.model_dump_json())
        return key


@contextmanager
def guard_world(redis_url: str, home: Path) -> Iterator[GuardWorld]:
    actor, critic = ScriptedActor(), FakeCritic()
    with ExitStack() as stack:
        settings = Settings(
            redis_url=redis_url,
            home=home,
            charters=home / "charters",
            actor_urls=stack.enter_context(serve(actor.app)),
            critic_urls=stack.enter_context(serve(critic.app)),
            internal_token=SecretStr("internal"),
            pepper=PEPPER,
            keep_alive_s=0.1,
        )
        redis = stack.enter_context(Redis.from_url(redis_url, decode_responses=True))
        yield GuardWorld(redis, settings, actor, critic, stack)


def write_charter(folder: Path | None, name: str, policy: dict[str, Any]) -> None:
    """The shipped one with another guard."""
    assert folder is not None
    shutil.copytree(SHIPPED, folder / name)
    file = folder / name / "charter.yaml"
    values = yaml.safe_load(file.read_text())
    file.write_text(
        yaml.safe_dump(
            {**values, "guard": {"refusal": {"en": REFUSAL_EN, "zh": REFUSAL_ZH}, **policy}}, allow_unicode=True
        )
    )


def ask(client: httpx.Client, text: str = "Who may speak?", **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    messages = [*fields.pop("before", []), {"role": "user", "content": text}]
    return client.post("/v1/chat/completions", json={"messages": messages, **fields}, headers=headers)


def text_of(reply: httpx.Response, index: int = 0) -> str:
    assert reply.status_code == 200, reply.text
    return str(reply.json()["choices"][index]["message"]["content"])
