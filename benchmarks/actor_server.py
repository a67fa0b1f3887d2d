"""An Actor in a process of its own, with a random model of the starter's shape and a Redis that nobody else uses."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from pydantic import SecretStr

from tests.fakes import add_version
from tests.servers import free_port, serve_redis, wait_until
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore
from vcllm.web.tokens import Signer, scrape_token

TOKEN = "internal"
METRICS = {"authorization": f"Bearer {scrape_token(SecretStr(TOKEN))}"}
STARTUP_S = 120.0
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "max_position_embeddings": 16384,
}


@dataclass(frozen=True)
class ActorProcess:
    """A running Actor."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        """Good for a minute."""
        return Signer(SecretStr(TOKEN), "gateway").headers("actor")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics", headers=METRICS, timeout=10).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextmanager
def actor_process(**settings: Any) -> Iterator[ActorProcess]:
    """Ready, with the promoted version `v1`; killed at the end of the block if it has not ended by then."""
    with tempfile.TemporaryDirectory(prefix="vcllm-") as folder, serve_redis(Path(folder)) as redis:
        home = Path(folder) / "home"
        add_version(ModelStore(home / "models"), "actor", "v1", **SHAPE)
        with open_redis(redis.url) as client:
            AliasStore(client).promote("actor", "v1")
        port = free_port()
        environment = {
            **os.environ,
            "ACTOR_PORT": str(port),
            "ACTOR_THREADS": "1",
            "VCLLM_HOME": str(home),
            "VCLLM_REDIS_URL": redis.url,
            "VCLLM_INTERNAL_TOKEN": TOKEN,
            **{f"ACTOR_{name.upper()}": str(value) for name, value in settings.items()},
        }
        with subprocess.Popen([sys.executable, "-m", "services.actor"], env=environment) as process:
            server = ActorProcess(port, process)
            try:
                wait_until(lambda: is_ready(server), timeout_s=STARTUP_S)
                yield server
            finally:
                process.kill()


def is_ready(server: ActorProcess) -> bool:
    """Whether it can serve now."""
    try:
        return httpx.get(f"{server.url}/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
