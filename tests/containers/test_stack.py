"""`docker-compose.yml` really brought up: chat, a job, three Actors and a fourth, one killed, and nothing told.

`make test-containers` runs this. The tests stand in the order in which the stack is used.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime

import httpx
import pytest

from tests.containers.engine import NoEngine, build_images, docker, logs, require_engine
from tests.containers.stack import NAMES, PROJECT, Stack, running
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.launch.services import SERVICES

pytestmark = pytest.mark.slow

if not os.environ.get("VCLLM_TEST_CONTAINERS"):
    pytest.skip("brings up containers for minutes; `make test-containers` runs it", allow_module_level=True)

ASK = {"model": ALIGNED_MODEL, "messages": [{"role": "user", "content": "Who may speak?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Stack]:
    try:
        require_engine()
        images = build_images()
    except NoEngine as reason:
        pytest.skip(str(reason))
    with running(PROJECT, tmp_path_factory.mktemp("containers"), images) as stack:
        yield stack
        if request.session.testsfailed:
            print(stack.story())  # once the containers are gone nobody can look


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[httpx.Client]:
    """With a key that the operator made inside the gateway's container."""
    scopes = [f"--scope={scope}" for scope in ("chat", "jobs:read", "jobs:write", "admin")]
    key = stack.exec("gateway", "python", "-m", "vcllm.cli", "keys", "create", "tests", *scopes).split()[-1]
    with httpx.Client(base_url=stack.url, headers={"authorization": f"Bearer {key}"}, timeout=60) as client:
        until(lambda: client.get("/health/ready").status_code == 200, 60)
        until(lambda: client.post("/v1/chat/completions", json=ASK).status_code == 200, 60)
        yield client


def until(holds: Callable[[], bool], timeout_s: float) -> float:
    """Seconds until it held; AssertionError when it did not in time."""
    started = time.monotonic()
    while True:
        try:
            if holds():
                return time.monotonic() - started
        except httpx.TransportError:
            pass
        assert time.monotonic() - started < timeout_s, "it did not happen in time"
        time.sleep(0.1)


def replica(client: httpx.Client) -> str:
    reply = client.post("/v1/chat/completions", json=ASK)
    assert reply.status_code == 200, reply.text
    return str(reply.headers["x-vc-replica"])


def replicas(client: httpx.Client, number: int) -> Counter[str]:
    """Who served so many chats, six at a time."""
    with ThreadPoolExecutor(6) as pool:
        return Counter(pool.map(lambda _: replica(client), range(number)))


def serving_since(container: str) -> float | None:
    """When its Actor took up the version, in Unix seconds, by its own log."""
    lines = [line for line in logs(container).splitlines() if "version is now" in line]
    return datetime.fromisoformat(lines[0].split()[0][:26] + "+00:00").timestamp() if lines else None


def test_a_chat_is_answered_by_the_promoted_version(client: httpx.Client) -> None:
    reply = client.post("/v1/chat/completions", json=ASK)

    assert reply.status_code == 200, reply.text
    assert reply.headers["x-vc-version"] == "v1"


def test_every_container_comes_to_be_well(stack: Stack) -> None:
    for name in ("redis", *NAMES):
        until(lambda name=name: stack.health(name) == {"healthy"}, 120)


def test_no_secret_can_be_seen_from_outside(stack: Stack) -> None:
    """Neither in what the engine tells of containers and images, nor in their environment, nor in any log."""
    containers = stack.containers()
    seen = docker("inspect", *containers) + docker("image", "inspect", *stack.images.ours)
    seen += "".join(docker("top", container, "-eo", "pid,args") + logs(container) for container in containers)
    seen += "".join(stack.exec(name, "env") for name in ("redis", *NAMES))

    assert len(containers) == len(NAMES) + 1
    assert [name for name, secret in stack.secrets.items() if secret in seen] == []


@pytest.mark.parametrize("service", NAMES)
def test_a_service_is_nobody_and_can_write_only_where_it_must(stack: Stack, service: str) -> None:
    """Not root, no capabilities, a root file system that cannot be written, models only where they are made."""
    probe = """
import os, pathlib
def can_write(folder):
    try:
        (pathlib.Path(folder) / "probe").touch()
        (pathlib.Path(folder) / "probe").unlink()
    except OSError:
        return False
    return True
status = pathlib.Path("/proc/self/status").read_text()
print(os.getuid(), status.split("CapBnd:")[1].split()[0], status.split("NoNewPrivs:")[1].split()[0])
print([folder for folder in ("/", "/app", "/opt/venv", "/etc", "/run/secrets") if can_write(folder)])
print(can_write("/var/lib/vcllm"), can_write("/tmp"))
"""
    who, writable, state = stack.exec(service, "python", "-c", probe).splitlines()

    assert who == "10001 0000000000000000 1"
    assert writable == "[]"
    assert state == f"{service.startswith('trainer')} True"


def test_the_roles_have_no_way_out_and_cannot_be_reached_past_the_gateway(stack: Stack) -> None:
    """Only the gateway publishes a port; a role answers nobody who does not hold the internal token."""
    ports = {name: docker("port", stack.containers(name)[0]).strip() for name in ("redis", *NAMES)}
    refused = (
        "import urllib.request as r, urllib.error as e\ntry: r.urlopen('http://actor:8201/v1/models', timeout=5)\n"
    )
    refused += "except e.HTTPError as error: print(error.code)"

    assert {name for name, port in ports.items() if port} == {"gateway"}
    assert ports["gateway"] == f"8080/tcp -> 127.0.0.1:{stack.port}"
    assert stack.exec("critic", "python", "-c", refused).strip() == "401"


def test_redis_keeps_everything_and_drops_nothing(stack: Stack) -> None:
    ask = 'export REDISCLI_AUTH="$(cat /run/secrets/redis_password)"; redis-cli config get'

    assert stack.exec("redis", "sh", "-c", f"{ask} appendonly").split() == ["appendonly", "yes"]
    assert stack.exec("redis", "sh", "-c", f"{ask} maxmemory-policy").split() == ["maxmemory-policy", "noeviction"]
    assert "NOAUTH" in stack.exec("redis", "redis-cli", "config", "get", "appendonly")


def test_a_job_runs_to_its_end_in_the_workers(client: httpx.Client) -> None:
    """A pipeline in one worker, its training run in the other, and a version in the volume they share."""
    made = client.post("/v1/jobs", json={"recipe": "micro", "stage": "pretrain"})
    assert made.status_code in (200, 201, 202), made.text
    job = made.json()["id"]

    until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] in ("succeeded", "failed"), 240)

    ended = client.get(f"/v1/jobs/{job}").json()
    assert ended["state"] == "succeeded", ended["error"]


def test_three_actors_share_the_chats(stack: Stack, client: httpx.Client) -> None:
    """300 chats after `up --scale actor=3`: nobody has less than a quarter or more than 42 %."""
    stack.up(actor=3)
    until(lambda: len(replicas(client, 12)) == 3, 60)

    served = replicas(client, 300)

    print("shares of three:", sorted(served.values()))
    assert len(served) == 3
    assert all(75 <= number <= 126 for number in served.values()), served


def test_a_fourth_actor_has_chats_within_ten_seconds_of_being_ready(stack: Stack, client: httpx.Client) -> None:
    """By the log of the Actor itself, which says when it took up the version."""
    before, known = set(stack.containers("actor")), set(replicas(client, 60))
    stack.up(actor=4)
    (fourth,) = set(stack.containers("actor")) - before

    until(lambda: replica(client) not in known, 90)
    served_at = time.time()

    until(lambda: serving_since(fourth) is not None, 5)
    ready_at = serving_since(fourth)
    assert ready_at is not None
    print(f"the fourth was asked {served_at - ready_at:.1f} s after it was ready")
    assert served_at - ready_at <= 10


def test_no_client_sees_it_when_an_actor_is_killed(stack: Stack, client: httpx.Client) -> None:
    """Chats go on, six at a time, while one of the Actors is killed; every one of them is answered."""
    statuses: Counter[int | str] = Counter()
    ended = threading.Event()

    def chat() -> None:
        while not ended.is_set():
            try:
                statuses[client.post("/v1/chat/completions", json=ASK).status_code] += 1
            except httpx.HTTPError as error:
                statuses[type(error).__name__] += 1

    with ThreadPoolExecutor(6) as pool:
        for _ in range(6):
            pool.submit(chat)
        time.sleep(3)
        docker("kill", "--signal", "KILL", stack.containers("actor")[0])
        time.sleep(12)
        ended.set()

    print("statuses while one was killed:", dict(statuses))
    assert set(statuses) == {200}
    assert statuses[200] > 100


def test_the_table_of_services_is_what_runs(stack: Stack) -> None:
    """Nothing of the stack is left out here because nobody remembered it."""
    assert set(stack.compose("ps", "--services").split()) == {service.name for service in SERVICES} | {"redis"}
