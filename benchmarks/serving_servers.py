"""Servers of one model, each a process of its own started as its users start it: our Actor, `transformers serve`, vLLM.

All get the same cores and number of threads. A server whose turn it is not is stopped (SIGSTOP), so that none works
while another is measured, whatever it does when idle.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import SecretStr
from redis import Redis

from vcllm.contracts.manifests import Manifest
from vcllm.launch.embedded_redis import EmbeddedRedis, answers
from vcllm.launch.ports import LOOPBACK, free_port
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore, hash_files

ROOT = Path(__file__).parent.parent
START_S = 300.0
"""Longest wait for a first healthy answer; vLLM compiles for minutes when it starts for the first time."""
STOP_S = 15.0
MODEL = "bench"
"""The version's name in our store, and the served name where a server lets one choose."""

Maker = Literal["ours", "transformers", "vllm"]


@dataclass(frozen=True)
class Variant:
    """One way to start a server."""

    maker: Maker
    label: str
    dtype: str
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)


OURS = Variant("ours", "float32", "float32")
PEERS: dict[str, list[Variant]] = {
    "plain": [Variant("transformers", dtype, dtype, ("--dtype", dtype)) for dtype in ("float32", "bfloat16")],
    "batching": [
        Variant(
            "transformers",
            f"continuous batching, {dtype}",
            dtype,
            # By default its cache takes most of the memory there is, which the others need.
            ("--dtype", dtype, "--continuous-batching", "--cb-max-memory-percent", "0.1"),
        )
        for dtype in ("float32", "bfloat16")
    ],
    "vllm": [
        Variant("vllm", f"{dtype}, {mode}", dtype, ("--dtype", dtype, *flags))
        for mode, flags in (("eager", ("--enforce-eager",)), ("compiled", ()))
        for dtype in ("float32", "bfloat16")
    ],
}
"""Ways to start each peer; the fastest is found in the same run."""


@dataclass(frozen=True)
class Command:
    """How a process is started, and how it is asked."""

    words: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    health: str
    model: str
    """As requests name it."""
    secret: str | None = None
    """By which its callers sign; None: it asks for no token."""


class DidNotStart(Exception):
    """Why a server gave no healthy answer: its last words."""


class Server:
    """A running server; its whole process group is stopped and continued together."""

    def __init__(self, command: Command, port: int, log: Path) -> None:
        self.command, self.port = command, port
        with log.open("wb") as handle:
            started = time.perf_counter()
            self.process = subprocess.Popen(
                command.words,
                stdout=handle,
                stderr=subprocess.STDOUT,
                cwd=command.folder,
                env=dict(command.environment),
                start_new_session=True,
            )
        try:
            self._wait_until_healthy(log)
        except BaseException:
            self.end()
            raise
        self.ready_s = time.perf_counter() - started
        """From the start of the process to the first healthy answer."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run within, stand still outside."""
        os.killpg(self.process.pid, signal.SIGCONT)
        try:
            yield
        finally:
            self.pause()

    def pause(self) -> None:
        os.killpg(self.process.pid, signal.SIGSTOP)

    def end(self) -> None:
        """Politely, then not."""
        for sign in (signal.SIGCONT, signal.SIGTERM):
            self._tell(sign)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        self._tell(signal.SIGKILL)  # also what is left of its group
        self.process.wait()

    def _tell(self, sign: signal.Signals) -> None:
        try:
            os.killpg(self.process.pid, sign)
        except ProcessLookupError:
            return

    def _wait_until_healthy(self, log: Path) -> None:
        deadline = time.monotonic() + START_S
        url = f"http://{LOOPBACK}:{self.port}{self.command.health}"
        while not _healthy(url):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise DidNotStart(_last_words(log.read_text(errors="replace")))
            time.sleep(0.02)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it said nothing"


@dataclass(frozen=True)
class Place:
    """What all servers of a run share."""

    home: Path
    """Below it: `data` with the models, and what the servers write."""
    threads: int
    ours: Path = ROOT
    """The checkout whose Actor is measured."""
    vllm_python: Path = ROOT / ".venv-vllm" / "bin" / "python"
    max_concurrency: int = 32
    device: str = "cpu"

    def model(self, size: str) -> Path:
        return self.home / "data" / size

    def start(self, variant: Variant, size: str, redis_url: str) -> Server:
        """Ready, and at rest. DidNotStart when it gives no healthy answer."""
        port = free_port()
        make: Callable[..., Command] = {"ours": self._ours, "transformers": self._transformers, "vllm": self._vllm}[
            variant.maker
        ]
        server = Server(make(variant, size, port, redis_url), port, self.home / f"{variant.maker}.log")
        server.pause()
        return server

    def _ours(self, variant: Variant, size: str, port: int, redis_url: str) -> Command:
        """With a model store and an alias, as the launcher starts it; its threads wait as those of the others do."""
        home = new_store(self.home / "store" / size, self.model(size), redis_url)
        token = secrets.token_hex(16)
        told = {
            "VCLLM_HOME": str(home),
            "VCLLM_REDIS_URL": redis_url,
            "VCLLM_INTERNAL_TOKEN": token,
            "ACTOR_HOST": LOOPBACK,
            "ACTOR_PORT": str(port),
            "ACTOR_DEVICE": self.device,
            "MALLOC_ARENA_MAX": "2",
            "PYTHONPATH": str(self.ours),
        }
        words = (sys.executable, "-m", "services.actor")
        environment = self._plain() | told | variant.environment
        return Command(words, environment, self.ours, "/health/ready", MODEL, token)

    def _transformers(self, variant: Variant, size: str, port: int, _: str) -> Command:
        folder = str(self.model(size))
        words = (str(Path(sys.executable).with_name("transformers")), "serve", folder)
        words += ("--host", LOOPBACK, "--port", str(port), "--device", self.device, *variant.arguments)
        return Command(words, self._plain() | variant.environment, self.home, "/health", folder)

    def _vllm(self, variant: Variant, size: str, port: int, _: str) -> Command:
        words: tuple[str, ...] = (str(self.vllm_python), "-m", "vllm.entrypoints.openai.api_server")
        words += ("--model", str(self.model(size)), "--served-model-name", MODEL, "--host", LOOPBACK)
        words += ("--port", str(port), "--max-num-seqs", str(max(64, self.max_concurrency)))
        words += ("--disable-uvicorn-access-log", *variant.arguments)
        # Beside the interpreter are the tools by which it compiles.
        path = f"{self.vllm_python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
        told = {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "PATH": path}
        cache = {"VLLM_CACHE_ROOT": str(self.home / "vllm-cache")}
        return Command(words, self._plain() | told | cache | variant.environment, self.home, "/health", MODEL)

    def _plain(self) -> dict[str, str]:
        """This environment, the threads, no network."""
        told = {
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(self.home / "cache"),
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "OMP_WAIT_POLICY"}}
        return kept | told

    def missing(self, maker: Maker) -> str | None:
        """Why a server cannot be started; None where it can."""
        if maker == "vllm" and not self.vllm_python.is_file():
            return "not installed; `make vllm` installs it"
        if maker == "transformers":
            from transformers.utils.import_utils import is_serve_available

            return None if is_serve_available() else "its server is not installed; `make bench-serving` installs it"
        return None

    def name_of(self, maker: Maker) -> str:
        """With the release."""
        match maker:
            case "ours":
                return "ours"
            case "transformers":
                return f"transformers serve {version('transformers')}"
            case "vllm":
                ask = [str(self.vllm_python), "-c", "from importlib.metadata import version as v; print(v('%s'))"]
                for package in ("vllm-cpu", "vllm"):
                    said = subprocess.run([*ask[:2], ask[2] % package], capture_output=True, text=True, check=False)
                    if said.returncode == 0:
                        return f"vLLM {said.stdout.strip()}"
                return "vLLM"


def new_store(home: Path, model: Path, redis_url: str) -> Path:
    """A model store with the model as its only, promoted Actor version."""
    shutil.rmtree(home, ignore_errors=True)
    store = ModelStore(home / "models")
    staged = store.staging("actor", MODEL)
    shutil.copytree(model, staged, dirs_exist_ok=True)
    manifest = Manifest(
        role="actor",
        name=MODEL,
        lineage=MODEL,
        stage="random",
        format="full",
        files=hash_files(staged),
        recipe={},
        recipe_hash="",
        charter="",
        dataset="",
        token=0,
        job="",
        created=time.time(),
    )
    store.commit(staged, manifest)
    redis: Any = open_redis(redis_url)
    AliasStore(redis).promote("actor", MODEL)
    redis.close()
    return home


@contextmanager
def embedded_redis(folder: Path) -> Iterator[str]:
    """The address of a Redis of our own, as `vcllm up` starts one."""
    embedded = EmbeddedRedis(folder, free_port(), SecretStr(secrets.token_hex(16)))
    embedded.configure()
    with subprocess.Popen(embedded.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with Redis.from_url(embedded.url) as client:
                deadline = time.monotonic() + 15
                while not answers(client):
                    if time.monotonic() > deadline:
                        raise DidNotStart("the embedded Redis does not answer")
                    time.sleep(0.02)
            yield embedded.url
        finally:
            process.terminate()
