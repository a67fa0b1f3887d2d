"""Where texts and secrets end up: every secret is a word found nowhere else, and every place is searched for it.

Real processes with everything logged that can be: a gateway, an Actor whose model is hosted, a Redis with a password.
What is asked goes well, is refused, fails, takes too long, breaks off and is left.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest
from pydantic import SecretStr
from redis import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from tests.fake_upstream import DONE, FakeUpstream, chunk, refused, streamed, whole
from tests.gateway_world import RECIPE
from tests.servers import free_port, serve, wait_until
from vcllm.contracts.keys import Scope
from vcllm.launch.embedded_redis import EmbeddedRedis, answers
from vcllm.stores.audit import AuditLog
from vcllm.stores.audit_copy import copy_of, extend_copy
from vcllm.stores.connect import open_redis
from vcllm.web.tokens import scrape_token

ROOT = Path(__file__).parents[2]
CHAT = "/v1/chat/completions"
HOSTED = "Org/Hosted-1"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def word(name: str) -> str:
    return f"canary{name}{secrets.token_hex(12)}"


PROMPT, ANSWER, FAULT, USER = word("prompt"), word("answer"), word("fault"), word("user")
INTERNAL, PEPPER, PASSWORD, UPSTREAM = word("internal"), word("pepper"), word("password"), word("upstream")

ALLOWED: dict[str, set[str]] = {
    # What is said goes to the model, and what the model says to who asked; nobody else sees either.
    "prompt": {"the wire to the actor", "the hosted model"},
    "answer": {"the wire to the actor", "good replies"},
    # What a hosted model says of a request goes to who sent it, and into no log. Who the user is, is for nobody.
    "fault of the model": {"the wire to the actor", "bad replies"},
    "user": set(),
    # A key is shown when it is made, and left in one file when a gateway starts for the first time.
    "admin key": {"home/secrets/admin_key"},
    "user's key": {"replies that make keys"},
    "wrong key": set(),
    # Secrets of the house are read from files, and sent to nobody but whom they are for.
    "internal token": set(),
    "pepper": set(),
    "redis password": {"redis.conf"},
    "upstream key": {"the hosted model"},
}
"""Each canary, and the only places where it may be; there it has to be, or the search would prove nothing."""


@dataclass
class House:
    """What runs, what it was told, and what came out of it."""

    folder: Path
    upstream: FakeUpstream
    redis: EmbeddedRedis
    gateway: str = ""
    actor: str = ""
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    replies: dict[str, list[str]] = field(default_factory=dict)
    traces: list[bytes] = field(default_factory=list)
    wire: list[bytes] = field(default_factory=list)
    """What gateway and Actor say to each other."""
    canaries: dict[str, str] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def keep(self, kind: str, reply: httpx.Response) -> httpx.Response:
        """Head and body, for the search."""
        head = "\n".join(f"{name}: {value}" for name, value in reply.headers.items())
        self.replies.setdefault(kind, []).append(f"{head}\n{reply.text}")
        return reply

    def ask(self, key: str, text: str = PROMPT, kind: str = "good replies", **changes: object) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "user": USER, "max_tokens": 8, **changes}
        headers = {"authorization": f"Bearer {key}", "traceparent": TRACE}
        return self.keep(kind, httpx.post(f"{self.gateway}{CHAT}", json=body, headers=headers, timeout=30))


@contextmanager
def house(folder: Path) -> Iterator[House]:
    with ExitStack() as stack:
        redis = EmbeddedRedis(folder / "redis", free_port(), SecretStr(PASSWORD))
        redis.configure()
        world = House(folder, FakeUpstream(), redis)
        world.upstream.models = {HOSTED: HOSTED}
        (world.home / "recipes").mkdir(parents=True)
        (world.home / "recipes" / "tiny.toml").write_text(RECIPE)
        _start(world, stack, "redis", redis.command, {})
        with open_redis(redis.url) as client:
            wait_until(lambda: answers(client))
        upstream = stack.enter_context(serve(world.upstream.app))
        told = _told(world, stack.enter_context(serve(collector(world))))
        actor, gateway = free_port(), free_port()
        hosted = {"ACTOR_UPSTREAM_URL": upstream, "ACTOR_UPSTREAM_MODEL": HOSTED, "ACTOR_UPSTREAM_RETRIES": "0"}
        hosted |= {"ACTOR_PORT": str(actor), "ACTOR_POLL_S": "0.1", "ACTOR_UPSTREAM_SILENCE_S": "2"}
        hosted |= {"ACTOR_UPSTREAM_KEY_FILE": _secret_file(folder, "upstream_key", UPSTREAM)}
        _start(world, stack, "actor", (sys.executable, "-m", "services.actor"), told | hosted)
        world.actor, world.gateway = f"http://127.0.0.1:{actor}", f"http://127.0.0.1:{gateway}"
        wait_until(lambda: _is_up(f"{world.actor}/health/ready"), timeout_s=90)
        door = {
            "GATEWAY_PORT": str(gateway),
            "VCLLM_ACTOR_URLS": stack.enter_context(tapped(world.actor, world.wire)),
            "GATEWAY_ANSWER_TIMEOUT_S": "4",
        }
        door |= {"VCLLM_PEPPER_FILE": _secret_file(folder, "pepper", PEPPER)}
        _start(world, stack, "gateway", (sys.executable, "-m", "gateway"), told | door)
        wait_until(lambda: _is_up(f"{world.gateway}/health/ready"), timeout_s=90)
        yield world


@contextmanager
def tapped(url: str, heard: list[bytes]) -> Iterator[str]:
    """An address that leads to `url`; whatever goes either way is heard."""
    there = ("127.0.0.1", int(url.rpartition(":")[2]))

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                heard.append(piece)
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    class Relay(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(there) as onward:
                back = threading.Thread(target=copy, args=(onward, self.request))
                back.start()
                copy(self.request, onward)
                back.join()

    class Relays(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Relays(("127.0.0.1", 0), Relay) as relays:
        thread = threading.Thread(target=relays.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{relays.server_address[1]}"
        relays.shutdown()
        thread.join()


def collector(world: House) -> Starlette:
    """Takes traces, as OpenTelemetry sends them: what they say stands in them as it is."""

    async def take(request: Request) -> Response:
        world.traces.append(await request.body())
        return Response(media_type="application/x-protobuf")

    return Starlette(routes=[Route("/v1/traces", take, methods=["POST"])])


def _told(world: House, collecting: str) -> dict[str, str]:
    folder = world.folder
    return {
        "VCLLM_HOME": str(world.home),
        "VCLLM_RECIPES": str(world.home / "recipes"),
        "VCLLM_REDIS_URL": f"redis://127.0.0.1:{world.redis.port}/0",
        "VCLLM_REDIS_PASSWORD_FILE": _secret_file(folder, "redis_password", PASSWORD),
        "VCLLM_INTERNAL_TOKEN_FILE": _secret_file(folder, "internal_token", INTERNAL),
        "VCLLM_LOG_LEVEL": "DEBUG",
        "PYTHONASYNCIODEBUG": "1",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collecting,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }


def _secret_file(folder: Path, name: str, secret: str) -> str:
    file = folder / "given" / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(secret)
    return str(file)


def _start(world: House, stack: ExitStack, name: str, command: tuple[str, ...], told: Mapping[str, str]) -> None:
    with (world.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **told}, stdout=log, stderr=subprocess.STDOUT)
    stack.callback(process.wait)
    stack.callback(process.kill)
    world.processes[name] = process


def _is_up(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url, timeout=5).status_code == 200
    return False


# What is done.


def use(world: House) -> None:
    """Every way a request can go."""
    admin = (world.home / "secrets" / "admin_key").read_text()
    made = world.keep(
        "replies that make keys",
        httpx.post(
            f"{world.gateway}/v1/keys",
            json={"name": "canary test", "scopes": [Scope.CHAT, Scope.JOBS_WRITE]},
            headers={"authorization": f"Bearer {admin}"},
        ),
    )
    assert made.status_code == 201, made.text
    key = made.json()["key"]
    wrong = f"vck_{key[4:8]}{key[8:]}"[:-6] + "AbCdEf"
    world.canaries |= {"admin key": admin, "user's key": key, "wrong key": wrong}
    answered(world, key)
    failed(world, key)
    refused_at_the_door(world, key, wrong)
    left(world, key)
    managed(world, admin, key)


def answered(world: House, key: str) -> None:
    world.upstream.script(CHAT, whole(ANSWER))
    assert world.ask(key).status_code == 200
    world.upstream.script(CHAT, streamed(chunk(ANSWER), chunk(finish="stop"), DONE))
    assert "[DONE]" in world.ask(key, stream=True).text


def failed(world: House, key: str) -> None:
    """A model that refuses, fails, says rubbish, breaks off and says nothing."""
    for answer in (
        refused(400, f"too long {FAULT}"),
        refused(401, FAULT),
        refused(500, FAULT),
        refused(503, FAULT),
        PlainTextResponse(FAULT),
        PlainTextResponse(FAULT, 502),
    ):
        for stream in (False, True):
            world.upstream.script(CHAT, answer)
            assert is_error(world.ask(key, kind="bad replies", stream=stream))
    world.upstream.script(CHAT, streamed(chunk("so"), b"data: {" + FAULT.encode() + b"\n\n"))
    world.ask(key, kind="bad replies", stream=True)
    world.upstream.script(CHAT, streamed(10.0))
    for stream in (False, True):
        assert is_error(world.ask(key, kind="bad replies", stream=stream))


def is_error(reply: httpx.Response) -> bool:
    """A stream that has begun says so at its end."""
    return reply.status_code >= 400 or '"error"' in reply.text


def refused_at_the_door(world: House, key: str, wrong: str) -> None:
    """Wrong bodies, wrong keys, wrong addresses, and the secrets themselves as keys."""
    asked = {"messages": [{"role": "user", "content": PROMPT}]}
    bodies: list[bytes] = [
        f'{{"messages": [{{"role": "user", "content": "{PROMPT}"'.encode(),
        f'{{"messages": "{PROMPT}"}}'.encode(),
        f'{{"messages": [{{"role": "{PROMPT}", "content": "x"}}]}}'.encode(),
        f'{{"messages": [], "temperature": "{PROMPT}", "stop": ["{PROMPT}"]}}'.encode(),
        b'{"messages": [{"role": "user", "content": "\\ud800' + PROMPT.encode() + b'"}]}',
        f'{{"messages": [{{"role": "user", "content": "{PROMPT}"}}], "max_tokens": 1e99}}'.encode(),
        PROMPT.encode() * 60_000,
        b"\xff" + PROMPT.encode(),
    ]
    with httpx.Client(base_url=world.gateway, timeout=30) as client:
        for path in (CHAT, "/v1/jobs"):
            for body in bodies:
                headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
                reply = client.post(path, content=body, headers=headers)
                assert world.keep("bad replies", reply).status_code >= 400
        for given in (
            f"Bearer {wrong}",
            f"Basic {base64.b64encode(wrong.encode()).decode()}",
            wrong,
            f"Bearer {INTERNAL}",
        ):
            told = {"authorization": given, "cookie": f"session={wrong}", "x-request-id": f"{wrong} {PROMPT}"}
            reply = client.post(CHAT, json=asked, headers=told, params={"api_key": wrong})
            assert world.keep("bad replies", reply).status_code == 401
        for path in ("/v1/nothing", "/v1/jobs/none", CHAT):
            reply = client.get(path, params={"api_key": key, "q": PROMPT}, headers={"authorization": f"Bearer {key}"})
            assert world.keep("bad replies", reply).status_code >= 400
        for given in (INTERNAL, scrape_token(SecretStr(INTERNAL)), key):
            reply = client.post(f"{world.actor}{CHAT}", json=asked, headers={"authorization": f"Bearer {given}"})
            assert world.keep("bad replies", reply).status_code == 401


def left(world: House, key: str) -> None:
    """By a client that goes in the middle."""
    world.upstream.script(CHAT, streamed(chunk(ANSWER), 1.0, DONE))
    for stream in (False, True):
        with suppress(httpx.ReadTimeout):
            body = {"messages": [{"role": "user", "content": PROMPT}], "user": USER, "stream": stream}
            headers = {"authorization": f"Bearer {key}"}
            with httpx.stream("POST", f"{world.gateway}{CHAT}", json=body, headers=headers, timeout=0.3) as reply:
                next(reply.iter_raw(), None)
    time.sleep(0.5)


def managed(world: House, admin: str, key: str) -> None:
    """Jobs, keys and metrics; a key pasted where an id belongs."""
    with httpx.Client(base_url=world.gateway, headers={"authorization": f"Bearer {admin}"}, timeout=30) as client:
        for _ in range(2):
            client.post("/v1/jobs", json={"recipe": "tiny"}, headers={"idempotency-key": "once"})
        client.post(f"/v1/jobs/{PROMPT}{'x' * 64}/cancel")
        client.delete(f"/v1/keys/{key}")
        world.keep("lists", client.get("/v1/keys"))
        world.keep("lists", client.get("/v1/jobs"))
        world.keep("lists", client.get("/v1/audit", params={"limit": 500}))
        world.keep("metrics", client.get("/metrics"))
    scraper = {"authorization": f"Bearer {scrape_token(SecretStr(INTERNAL))}"}
    world.keep("metrics", httpx.get(f"{world.actor}/metrics", headers=scraper))
    world.keep("metrics", httpx.get(f"{world.gateway}/metrics", headers=scraper))
    with open_redis(world.redis.url) as redis:
        extend_copy(AuditLog(redis), copy_of(world.home))


# Where is looked.


def places(world: House) -> dict[str, bytes]:
    """Every place where something could be, by name."""
    found: dict[str, bytes] = {}
    for name, process in world.processes.items():
        found[f"log of the {name}"] = (world.folder / f"{name}.log").read_bytes()
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        found[f"command lines of the {name}"] = " ".join(" ".join(each.cmdline()) for each in family).encode()
        found[f"environment of the {name}"] = " ".join(" ".join(each.environ().values()) for each in family).encode()
    for kind, replies in world.replies.items():
        found[kind] = "\n".join(replies).encode()
    found["the hosted model"] = repr((world.upstream.requests, world.upstream.headers)).encode()
    for file in world.home.rglob("*"):
        if file.is_file():
            found[f"home/{file.relative_to(world.home)}"] = str(file).encode() + file.read_bytes()
    found["redis"] = dump(world.redis.url)
    found["the wire to the actor"] = b"\n".join(world.wire)
    found["traces"] = b"\n".join(world.traces)
    for file in (world.folder / "redis").rglob("*"):
        if file.is_file():
            found[file.name] = file.read_bytes()
    return found


def dump(url: str) -> bytes:
    """All keys and values of every database, and what the server itself remembers."""
    readers: dict[bytes, Callable[[Redis, bytes], object]] = {
        b"string": lambda redis, name: redis.get(name),
        b"hash": lambda redis, name: redis.hgetall(name),
        b"list": lambda redis, name: redis.lrange(name, 0, -1),
        b"set": lambda redis, name: redis.smembers(name),
        b"zset": lambda redis, name: redis.zrange(name, 0, -1, withscores=True),
        b"stream": lambda redis, name: redis.xrange(name),
    }
    with Redis.from_url(url) as redis:
        kept = [(name, readers[bytes(redis.type(name))](redis, name)) for name in redis.scan_iter("*")]
        known = (redis.client_list(), redis.slowlog_get(128))
    assert kept
    return repr((kept, known)).encode()


def disguises(secret: str) -> set[bytes]:
    """The word itself, encoded, and hashed without a key: what is as good as the word, or nearly."""
    raw = secret.encode()
    forms = {raw, raw.hex().encode(), hashlib.sha256(raw).hexdigest().encode(), hashlib.md5(raw).hexdigest().encode()}
    for shift in range(3):  # base64 of a text that the word begins anywhere in
        coded = base64.b64encode(b" " * shift + raw).rstrip(b"=")
        forms.add(coded[4:-4] if len(coded) > 16 else coded)
    return forms


@pytest.mark.slow
def test_texts_and_secrets_are_nowhere_but_where_they_belong(tmp_path: Path):
    """The table above holds for every place at once, in both directions."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="traces are one of the places")
    with house(tmp_path) as world:
        use(world)
        world.canaries |= {
            "prompt": PROMPT,
            "answer": ANSWER,
            "fault of the model": FAULT,
            "user": USER,
            "internal token": INTERNAL,
            "pepper": PEPPER,
            "redis password": PASSWORD,
            "upstream key": UPSTREAM,
        }
        everywhere = places(world)

    assert set(world.canaries) == set(ALLOWED)
    assert len(everywhere) > 15
    assert all(b"DEBUG" in everywhere[f"log of the {name}"] for name in ("gateway", "actor"))
    assert b"/v1/jobs" in everywhere["traces"] and b"actor" in everywhere["traces"]
    found = {
        name: {place for place, content in everywhere.items() if any(form in content for form in disguises(secret))}
        for name, secret in world.canaries.items()
    }
    assert found == ALLOWED
