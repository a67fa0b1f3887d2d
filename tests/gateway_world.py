"""A gateway on a real socket for tests: a real Redis, an Actor that has no model, and clients with one scope each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
from pydantic import SecretStr
from redis import Redis

from gateway.app import create_app
from gateway.settings import GatewaySettings
from tests.fake_actor import FakeActor
from tests.servers import serve
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.keys import Scope
from vcllm.contracts.manifests import Manifest
from vcllm.settings import Settings
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore, hash_files

PEPPER = SecretStr("pepper")
RECIPE = """
name = "tiny"
base.scratch = {}
pretrain.optim.learning_rate = 1e-3
sft.optim.learning_rate = 1e-3
critic.optim.learning_rate = 1e-3
attacker.optim.learning_rate = 1e-3
[rounds]
count = 1
preference.optim.learning_rate = 1e-4
attacker.optim.learning_rate = 1e-4
"""


@dataclass
class Gateway:
    """A running gateway, what it stands on, and clients with one scope each."""

    url: str
    settings: Settings
    redis: Redis
    actor: FakeActor
    http: dict[Scope | None, httpx.Client] = field(default_factory=dict)

    def __getitem__(self, scope: Scope | None) -> httpx.Client:
        """A client whose key has this one scope; None: without a key."""
        if scope not in self.http:
            headers = {} if scope is None else {"authorization": f"Bearer {self.key(scope)[0]}"}
            self.http[scope] = httpx.Client(base_url=self.url, headers=headers, timeout=10, verify=False)
        return self.http[scope]

    def reset(self) -> None:
        """As if it had just been started."""
        for client in self.http.values():
            client.close()
        self.http.clear()
        self.redis.flushall()
        shutil.rmtree(self.settings.models, ignore_errors=True)
        self.actor.forget()

    def key(self, *scopes: Scope, ttl_s: float | None = None) -> tuple[str, str]:
        key, record = KeyStore(self.redis, PEPPER).create("test", list(scopes), ttl_s)
        return key, record.id

    @property
    def jobs(self) -> JobStore:
        return JobStore(self.redis)


@contextmanager
def gateway_on(redis_url: str, home: Path, actor: FakeActor, **options: Any) -> Iterator[Gateway]:
    """options: of `create_app`; beside them `served` of `serve`, and of the settings `body_timeout_s`, `charters`."""
    (home / "recipes").mkdir()
    (home / "recipes" / "tiny.toml").write_text(RECIPE)
    with ExitStack() as stack:
        settings = Settings(
            redis_url=redis_url,
            home=home,
            recipes=home / "recipes",
            actor_urls=stack.enter_context(serve(actor.app)),
            internal_token=SecretStr("internal"),
            pepper=PEPPER,
            body_timeout_s=options.pop("body_timeout_s", 30.0),
            charters=options.pop("charters", None),
        )
        served = options.pop("served", {})
        limits = options.pop("limits", GatewaySettings(alias_ttl_s=0))
        url = stack.enter_context(serve(create_app(settings, limits, **options), **served))
        redis = stack.enter_context(Redis.from_url(redis_url, decode_responses=True))
        gateway = Gateway(url, settings, redis, actor)
        yield gateway
        for client in gateway.http.values():
            client.close()


def chat_body(text: str = "hello", **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def error_of(reply: httpx.Response, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def add_version(settings: Settings, name: str, parent: str | None = None, created: float = 1.0) -> None:
    store = ModelStore(settings.models)
    staged = store.staging("actor", name)
    (staged / "model.safetensors").write_bytes(name.encode())
    facts: dict[str, Any] = {
        "lineage": "line",
        "stage": "sft",
        "format": "full",
        "recipe": {},
        "recipe_hash": "r",
    }
    facts |= {
        "charter": "c",
        "dataset": "d",
        "token": 1,
        "job": "job-1",
        "created": created,
        "parent": parent,
    }
    store.commit(staged, Manifest(role="actor", name=name, files=hash_files(staged), **facts))


def sdk(gateway: Gateway, scope: Scope = Scope.CHAT, **options: Any) -> openai.OpenAI:
    key = gateway[scope].headers["authorization"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=key, **{"max_retries": 0, **options})


def queued_messages(redis: Redis) -> list[dict[str, Any]]:
    return [json.loads(raw) for raw in redis.lrange("rollouts", 0, -1)]


def create_job(gateway: Gateway, key: str | None = None, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"idempotency-key": key}
    return gateway[Scope.JOBS_WRITE].post("/v1/jobs", json={"recipe": "tiny", **fields}, headers=headers)


class BrokenQueue:
    """A broker that is away until it is mended."""

    def __init__(self) -> None:
        self.broken = True
        self.sent: list[str] = []

    def send(self, record: JobRecord) -> None:
        if self.broken:
            raise ConnectionError("canary-secret")
        self.sent.append(record.id)

    def close(self) -> None: ...
