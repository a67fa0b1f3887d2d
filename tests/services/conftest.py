"""One running gateway for each test file that asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.fake_actor import FakeActor
from tests.servers import RedisServer

if TYPE_CHECKING:
    from tests.gateway_world import Gateway


@pytest.fixture(scope="module")
def running(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that is there for all tests of the file, as the last test left it."""
    from tests.gateway_world import gateway_on  # tests of the role servers share this file and need no gateway

    with gateway_on(redis_server.url, tmp_path_factory.mktemp("home"), FakeActor()) as running:
        yield running


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """It, as if it had just been started."""
    running.reset()
    return running
