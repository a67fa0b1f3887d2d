"""What the model servers of a role tell of themselves: one Redis key per server, gone when it falls silent."""

from __future__ import annotations

from typing import Any

from redis import Redis

from vcllm.contracts.manifests import ROLES
from vcllm.contracts.servers import ServerReport
from vcllm.stores.connect import server_key, servers_key

SILENT_S = 20
"""A server that has told nothing for so long is no longer listed."""


class ServerStore:
    """Written by the servers, read by the gateway."""

    def __init__(self, redis: Redis) -> None:
        self.redis: Any = redis

    def put(self, report: ServerReport) -> None:
        with self.redis.pipeline() as pipe:
            pipe.set(server_key(report.role, report.server), report.model_dump_json(), ex=SILENT_S)
            pipe.sadd(servers_key(report.role), report.server)
            pipe.execute()

    def all(self) -> list[ServerReport]:
        """By role and name."""
        return [report for role in ROLES for report in self._of(role)]

    def _of(self, role: str) -> list[ServerReport]:
        servers = sorted(self.redis.smembers(servers_key(role)))
        found = self.redis.mget([server_key(role, server) for server in servers]) if servers else []
        silent = [server for server, report in zip(servers, found, strict=True) if report is None]
        if silent:
            self.redis.srem(servers_key(role), *silent)
        return [ServerReport.model_validate_json(report) for report in found if report is not None]
