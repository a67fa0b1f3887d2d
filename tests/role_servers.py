"""The three model servers on real sockets, each with a real engine and a tiny model that can say very little."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

import services.actor.app
import services.attacker.app
import services.critic.app
from services.actor.settings import ActorSettings
from services.attacker.settings import AttackerSettings
from services.critic.settings import CriticSettings
from tests.fakes import add_version
from tests.servers import serve, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.contracts.manifests import ROLES, Role
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

TOKEN = "canary-internal-3f9a"
CONTEXT = 96
"""Tokens of prompt and answer together: whatever a request asks for is soon written, or refused."""
APPS: dict[Role, Callable[[Settings], FastAPI]] = {
    "attacker": lambda shared: services.attacker.app.create_app(AttackerSettings(poll_s=0.05), shared),
    "actor": lambda shared: services.actor.app.create_app(ActorSettings(poll_s=0.05), shared),
    "critic": lambda shared: services.critic.app.create_app(CriticSettings(poll_s=0.05), shared),
}


@dataclass(frozen=True)
class RoleServer:
    """One that is ready."""

    role: Role
    app: FastAPI
    url: str
    home: Path

    @property
    def auth(self) -> ServiceAuth:
        return ServiceAuth(TOKEN, self.role)

    @property
    def authorization(self) -> dict[str, str]:
        """Good for a minute."""
        return {"authorization": f"Bearer {self.auth.token}"}


@contextmanager
def role_servers(
    redis_url: str, home: Path, *, body_timeout_s: float = 30.0, **served: Any
) -> Iterator[dict[Role, RoleServer]]:
    """All three, with the version `v1` of each promoted. served: options of `serve`."""
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN), body_timeout_s=body_timeout_s)
    for role in ROLES:
        add_version(ModelStore(shared.models), role, "v1", max_position_embeddings=CONTEXT)
        with open_redis(redis_url) as redis:
            AliasStore(redis).promote(role, "v1")
    with ExitStack() as stack:
        found: dict[Role, RoleServer] = {}
        for role, create in APPS.items():
            app = create(shared)
            url = stack.enter_context(serve(app, **served))
            # One after the other: transformers cannot load two models in one process at the same time.
            wait_until(partial(_is_ready, url))
            found[role] = RoleServer(role, app, url, home)
        yield found


def _is_ready(url: str) -> bool:
    return httpx.get(f"{url}/health/ready").status_code == 200
