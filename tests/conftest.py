"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import redis

from tests.servers import RedisServer, serve_redis
from vcllm.stores.connect import open_redis

# Before anything is started that inherits it: two ways to the same figures are compared, and with products in bfloat16,
# which some processors have, the order of a sum shows in the third digit.
os.environ.setdefault("VCLLM_PRECISION", "float32")


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """One real redis-server for the whole run."""
    with tempfile.TemporaryDirectory(prefix="vcllm-") as folder, serve_redis(Path(folder)) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The address of an empty Redis."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return redis_server.url


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty Redis, as the services open it."""
    with open_redis(redis_url, patience=0) as opened:
        yield opened


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A family's random model by name (`tests.tiny_models`), made once for the whole run; nobody changes it."""
    from tests.tiny_models import save_family  # tests of services without torch share this file

    return cache(lambda name: save_family(name, tmp_path_factory.mktemp("families") / name))
