"""The gate before Redis: what hangs is asked once by one, not by everybody in turn."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from vcllm.stores.gated import ANSWER_S, LOOK_S, RedisGate


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of something that accepts and never answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


def test_a_gate_is_open_while_redis_answers(redis_url: str) -> None:
    gate = RedisGate(redis_url)
    gate.look()

    assert gate.fault is None
    assert gate.redis.ping()
    gate.close()


def test_once_somebody_has_looked_in_vain_nobody_waits_for_a_redis_that_hangs(hanging: str) -> None:
    gate = RedisGate(hanging)
    begun = time.monotonic()
    gate.look()
    looked = time.monotonic()
    for _ in range(100):
        with pytest.raises(RedisConnectionError, match="does not answer"):
            gate.redis.get("something")
    with pytest.raises(RedisConnectionError), gate.redis.pipeline() as pipe:
        pipe.get("something").execute()
    asked = time.monotonic()
    gate.close()

    assert LOOK_S <= looked - begun < LOOK_S + 1
    assert asked - looked < 0.5


def test_a_command_that_came_before_waits_once_not_again(hanging: str) -> None:
    """A timeout is not retried: what was asked may have been done, and whoever asked has waited long enough."""
    gate = RedisGate(hanging)
    begun = time.monotonic()
    with pytest.raises(RedisTimeoutError):
        gate.redis.get("something")
    took_s = time.monotonic() - begun
    gate.close()

    assert ANSWER_S <= took_s < ANSWER_S + 1


def test_a_gate_opens_again(redis_url: str) -> None:
    gate = RedisGate(redis_url)
    gate.fault = "Redis does not answer."
    with pytest.raises(RedisConnectionError):
        gate.redis.ping()
    gate.look()

    assert gate.redis.ping()
    gate.close()


def test_a_connection_that_redis_has_closed_is_opened_anew(redis_url: str) -> None:
    """As after a restart of Redis: the first command on it must not fail."""
    gate = RedisGate(redis_url)
    gate.redis.ping()
    with redis.Redis.from_url(redis_url) as other:
        other.client_kill_filter(_type="normal", skipme=True)

    assert gate.redis.ping()
    gate.close()
