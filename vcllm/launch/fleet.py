"""The whole fleet on one machine: where it lives, how it starts, how it is watched, how it ends.

Knows the services by their table and the processes by their supervision. Does not know what the services do.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

import httpx
import psutil
from redis import Redis

from vcllm.launch import leftovers, recovery
from vcllm.launch.credentials import Credentials, load_credentials
from vcllm.launch.embedded_redis import UNREADABLE, EmbeddedRedis, answers
from vcllm.launch.errors import LaunchError
from vcllm.launch.hold import only_launcher, put_aside, uninterrupted
from vcllm.launch.memory import MemoryPeak
from vcllm.launch.ports import LOOPBACK, free_port, is_free
from vcllm.launch.replicas import Replica, plan_replicas, with_free_ports
from vcllm.launch.services import ROLES, SERVICES, Places, Service, cores, environment
from vcllm.launch.supervision import STOP_S, Program, State, Supervision
from vcllm.settings import Settings
from vcllm.stores.connect import open_redis
from vcllm.stores.models import write_atomic

START_S = 180.0
"""How long the services may take to come up; a first start also compiles their libraries."""
OBSERVE_EVERY_S = 2.0
AFTER_GRACE_S = 2.0
"""What a worker needs, after its training runs have ended, to give its jobs back."""

ADDRESSES = "fleet.json"
"""Name to address of what runs; the folder is readable by its owner only."""

Say = Callable[[str], None]


class Fleet:
    """Use as a context: inside it the services run, after it nothing does.

    On entering, Redis and what a chat needs are up; `wait_until_up` waits for the others.

    scale: how many of a scalable service; one each unless said. port: where the gateway listens.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        scale: Mapping[str, int] | None = None,
        port: int = 8080,
        services: Sequence[Service] = SERVICES,
        say: Say = print,
        start_s: float = START_S,
    ) -> None:
        self.settings = settings
        self.home = settings.home.resolve()
        self.port = port
        self.say = say
        self.start_s = start_s
        self.replicas = plan_replicas(services, scale or {}, port)
        self.redis_url = settings.redis_url
        self._wants_redis = "redis_url" not in settings.model_fields_set or not settings.redis_url
        self._redis: EmbeddedRedis | None = None
        self._supervision: Supervision | None = None
        self._pids: dict[str, int] = {}
        """By name, as last seen; 0 while it is not running."""
        self._open = ExitStack()

    @property
    def url(self) -> str:
        """The gateway's address."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def run(self) -> Path:
        return self.home / "run"

    def __enter__(self) -> Fleet:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End everything that was started, by its id, within about ten seconds; nothing interrupts this."""
        with uninterrupted():
            self._open.close()

    def wait_until_up(self) -> None:
        """Wait for all services; LaunchError when one does not come up. A chat is possible before that."""
        self._wait_for(self.replicas)

    def check(self) -> None:
        """LaunchError when a service has been given up; a restart is only said."""
        for state in self._running.states().values():
            if state.given_up:
                raise LaunchError(self._obituary(state, "ended again and again"))
            before = self._pids.get(state.name, state.pid)
            if state.pid and state.pid != before:
                self.say(f"{state.name} ended unexpectedly and was started again.")
            self._pids[state.name] = state.pid or before

    def pid(self, name: str) -> int:
        """Of a service's main process, or of `redis`; 0: it does not run at the moment."""
        return self._running.states()[name].pid

    def watch(self) -> None:
        """Return never; LaunchError when a service has been given up."""
        while True:
            time.sleep(1)
            self.check()

    def redis(self) -> Redis:
        return open_redis(self.redis_url)

    @property
    def _running(self) -> Supervision:
        assert self._supervision is not None, "the fleet is used inside its context"
        return self._supervision

    # Starting, in this order.

    def _start(self) -> None:
        self._open.enter_context(only_launcher(self.home))
        self.run.mkdir(mode=0o700, parents=True, exist_ok=True)
        leftovers.end_noted(self.run / "processes.json")
        self._open.callback((self.run / "processes.json").unlink, missing_ok=True)
        put_aside(self.home / "log")
        credentials = load_credentials(self.settings)
        if not is_free(self.port):
            raise LaunchError(f"Port {self.port} is taken by another program. Choose another with --port.")
        self.replicas = with_free_ports(self.replicas, self.port)
        self._settle_redis(credentials)
        supervision = self._supervise(credentials)
        self._observe(supervision)
        if self._redis is not None:
            self._start_redis(supervision, self._redis)
            recovery.forget_leases(self.redis_url)
        self._publish()  # whoever finds the gateway ready finds the addresses, too
        first = [replica for replica in self.replicas if replica.service.first]
        for replica in first:
            supervision.launch(replica.name)
        self._wait_for(first)
        for replica in self.replicas:
            if replica not in first:
                supervision.launch(replica.name)

    def _settle_redis(self, credentials: Credentials) -> None:
        if self._wants_redis:
            self._redis = EmbeddedRedis(self.home / "redis", free_port(), credentials.redis_password)
            self._redis.configure()
            self.redis_url = self._redis.url
        elif not answers(open_redis(self.redis_url, patience=2)):
            raise LaunchError(
                f"Redis at {_without_password(self.redis_url)} does not answer. Start it, correct"
                " VCLLM_REDIS_URL, or leave that out for a private Redis."
            )

    def _supervise(self, credentials: Credentials) -> Supervision:
        places = self._places(credentials)
        programs = [
            Program(
                replica.name,
                replica.service.command,
                environment(replica.service, places, replica.port),
                stop_s=max(STOP_S, places.grace_s + AFTER_GRACE_S) if replica.service.is_worker else STOP_S,
            )
            for replica in self.replicas
        ]
        if self._redis is not None:
            programs.insert(0, Program("redis", self._redis.command, {}, last=True))
        supervision = Supervision(programs, self.run, self.home / "log")
        self._open.callback(supervision.stop)
        supervision.start()
        self._supervision = supervision
        return supervision

    def _places(self, credentials: Credentials) -> Places:
        def urls(role: str) -> str:
            own = [replica.url for replica in self.replicas if replica.service.name == role]
            return ",".join(own) or ",".join(self.settings.urls(role))

        return Places(
            home=str(self.home),
            recipes=str(self.settings.recipes.resolve()),
            data=str(self.settings.data.resolve()),
            redis_url=self.redis_url,
            urls={role: urls(role) for role in ROLES},
            internal_token=credentials.internal_token.get_secret_value(),
            pepper=credentials.pepper.get_secret_value(),
            cores=cores(),
            grace_s=float(os.environ.get("TRAINER_GRACE_S", STOP_S - AFTER_GRACE_S)),
            outside=os.environ,
        )

    def _observe(self, supervision: Supervision) -> None:
        ended = threading.Event()
        peak = MemoryPeak(self.run / "memory.json")
        noted = self.run / "processes.json"

        def observe() -> None:
            while not ended.wait(OBSERVE_EVERY_S):
                # A full disk, or a process that ends while it is looked at, must not end the observing.
                with suppress(OSError, psutil.Error):
                    processes = supervision.processes()
                    leftovers.note(noted, processes)
                    peak.sample([psutil.Process(), *processes])

        thread = threading.Thread(target=observe, name="observer", daemon=True)
        self._open.callback(thread.join)
        self._open.callback(ended.set)
        thread.start()

    def _start_redis(self, supervision: Supervision, redis: EmbeddedRedis) -> None:
        """Start it and wait until it has read its file; a damaged file is cut where the damage begins."""
        for attempt in (1, 2):
            supervision.launch("redis")
            until = time.monotonic() + self.start_s
            client = open_redis(redis.url, patience=0)
            while time.monotonic() < until:
                if answers(client):
                    client.close()
                    return
                if supervision.states()["redis"].has_ended:
                    break
                time.sleep(0.05)
            if attempt == 2 or UNREADABLE not in _text(supervision.log("redis")):
                raise LaunchError(self._obituary(supervision.states()["redis"], "ended while starting"))
            supervision.halt("redis")
            self.say(f"Redis' file was damaged and was cut there; a copy of it as it was: {redis.mend()}")

    def _wait_for(self, replicas: Sequence[Replica]) -> None:
        supervision = self._running
        waiting = {replica.name: replica for replica in replicas}
        until = time.monotonic() + self.start_s
        with httpx.Client(timeout=2.0, trust_env=False) as client:
            while waiting:
                states = supervision.states()
                for name in [name for name in waiting if states[name].has_ended]:
                    raise LaunchError(self._obituary(states[name], "ended while starting"))
                for name, replica in list(waiting.items()):
                    if _is_up(replica, supervision.log(name), client):
                        del waiting[name]
                if waiting and time.monotonic() > until:
                    raise LaunchError(
                        f"{', '.join(waiting)} did not come up within {self.start_s:.0f} s;"
                        f" the logs are in {self.home / 'log'}."
                    )
                time.sleep(0.1 if waiting else 0)

    def _publish(self) -> None:
        """Tell the commands on this machine where the services are."""
        file = self.run / ADDRESSES
        servers = {replica.name: replica.url for replica in self.replicas if replica.port is not None}
        write_atomic(file, json.dumps({**servers, "redis": self.redis_url}).encode())
        self._open.callback(file.unlink, missing_ok=True)

    def _obituary(self, state: State, what: str) -> str:
        log = self._running.log(state.name)
        last = [line for line in _text(log).splitlines() if line.strip()][-8:]
        lines = "\n".join(f"    {line}" for line in last) or "    (it said nothing)"
        return f"{state.name} {what}. The end of {log}:\n{lines}"


def _is_up(replica: Replica, log: Path, client: httpx.Client) -> bool:
    if replica.service.health is None:
        return replica.service.up_line is None or replica.service.up_line in _text(log)
    try:
        return client.get(replica.url + replica.service.health).status_code == 200
    except httpx.TransportError:
        return False


def _text(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
