"""Gateways in the same shape, each a process of its own on one core: ours, and LiteLLM's proxy.

One worker, key authentication, one upstream. Ours has its Redis, for it is never without; LiteLLM has no database.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from benchmarks.gateway_load import Task
from vcllm.contracts.keys import Scope
from vcllm.launch.embedded_redis import EmbeddedRedis, answers
from vcllm.launch.ports import LOOPBACK, free_port
from vcllm.stores.aliases import AliasStore
from vcllm.stores.api_keys import KeyStore
from vcllm.stores.connect import open_redis

ROOT = Path(__file__).parent.parent
LITELLM = ROOT / ".venv-litellm" / "bin" / "litellm"
MODEL = "vc-llm"
REQUEST = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You weigh all sides."},
        {"role": "user", "content": "Who may speak at the town meeting, and who decides about that?"},
    ],
    "max_tokens": 64,
}
START_S = 120.0


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    port: int
    headers: Mapping[str, str]
    process: psutil.Process
    cold_start_s: float
    """From its start until its first healthy answer."""

    @property
    def rss_mb(self) -> float:
        """Of the process and its children."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(each.memory_info().rss for each in family) / 1e6

    @property
    def cpu_s(self) -> float:
        """Processor time used so far."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)


@contextmanager
def mock_upstream(core: int, **options: float) -> Iterator[int]:
    """The port of `benchmarks.gateway_mock` on a core."""
    with mock_replicas(core, 1, **options) as [port]:
        yield port


@contextmanager
def mock_replicas(core: int, number: int, **options: float) -> Iterator[list[int]]:
    """The ports of so many replicas, one process for all of them."""
    ports: list[int] = []
    while len(ports) < number:
        ports = list(dict.fromkeys([*ports, free_port()]))
    given = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "benchmarks.gateway_mock", *map(str, ports), *given]
    with process("mock", command, {}, core, ports[-1], "/health/ready"):
        yield ports


@contextmanager
def our_gateway(
    core: int, upstreams: Sequence[int], home: Path, settings: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """settings: more environment variables of the gateway."""
    port, token, pepper = free_port(), secrets.token_hex(32), secrets.token_hex(32)
    with redis_server(home / "redis") as redis_url:
        with open_redis(redis_url) as client:
            key, _ = KeyStore(client, SecretStr(pepper)).create("bench", [Scope.CHAT])
            AliasStore(client).set("actor", "current", "mock-1")
        environment = {
            "VCLLM_HOME": str(home),
            "VCLLM_REDIS_URL": redis_url,
            "VCLLM_INTERNAL_TOKEN": token,
            "VCLLM_PEPPER": pepper,
            "VCLLM_ACTOR_URLS": ",".join(f"http://{LOOPBACK}:{upstream}" for upstream in upstreams),
            "GATEWAY_PORT": str(port),
            **(settings or {}),
        }
        command = [sys.executable, "-m", "gateway"]
        headers = {"authorization": f"Bearer {key}"}
        with process("ours", command, environment, core, port, "/health/ready", headers) as running:
            yield running


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Its address; configured as the launcher does it."""
    redis = EmbeddedRedis(folder, free_port(), SecretStr(secrets.token_hex(32)))
    redis.configure()
    with subprocess.Popen(redis.command, stdout=subprocess.DEVNULL) as process:
        try:
            with open_redis(redis.url) as client:
                while not answers(client):
                    time.sleep(0.02)
            yield redis.url
        finally:
            process.terminate()


@contextmanager
def litellm_proxy(core: int, upstream: int, folder: Path) -> Iterator[Running]:
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"http://{LOOPBACK}:{upstream}/v1",
                    "api_key": "unused",
                },
            }
        ],
        "general_settings": {"master_key": key},
    }
    file = folder / "litellm.json"  # YAML is a superset of JSON
    file.write_text(json.dumps(config))
    command = [str(LITELLM), "--config", str(file), "--host", LOOPBACK, "--port", str(port), "--num_workers", "1"]
    environment = {"LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False", "NO_DOCS": "True"}
    headers = {"authorization": f"Bearer {key}"}
    with process("litellm", command, environment, core, port, "/health/liveliness", headers) as running:
        yield running


@contextmanager
def process(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    core: int,
    port: int,
    health: str,
    headers: Mapping[str, str] | None = None,
) -> Iterator[Running]:
    """On its core from the start; ended with everything it has started."""
    begun = time.perf_counter()
    told = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment}
    started = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env=told,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(started, port, health)
        yield Running(name, port, headers or {}, psutil.Process(started.pid), time.perf_counter() - begun)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        try:
            started.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.wait()


@contextmanager
def paused(server: Running) -> Iterator[None]:
    """It does nothing at all for a while, whatever it does when idle."""
    family = [server.process, *server.process.children(recursive=True)]
    for each in family:
        each.suspend()
    try:
        yield
    finally:
        for each in family:
            each.resume()


def measure(task: Task, core: int) -> dict[str, Any]:
    """What `benchmarks.gateway_load` says of a task, run on a core."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(asdict(task), file)
        file.flush()
        command = ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.gateway_load", file.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, path: str) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode} before it answered")
        connection = http.client.HTTPConnection(LOOPBACK, port, timeout=2)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        time.sleep(0.05)
    raise RuntimeError(f"{process.args} did not answer within {START_S:g} s")
