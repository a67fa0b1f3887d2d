"""How many of each service run, under which name and on which port."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from vcllm.launch.errors import LaunchError
from vcllm.launch.ports import LOOPBACK, take_ports
from vcllm.launch.services import SERVICES, Service

MOST = 64


@dataclass(frozen=True)
class Replica:
    """One process to be: `actor`, or `actor-2` where there are several."""

    name: str
    service: Service
    port: int | None
    """None: it listens nowhere."""

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


def parse_scale(texts: Sequence[str]) -> dict[str, int]:
    """`["actor=2"]` to `{"actor": 2}`; LaunchError for what cannot be scaled."""
    allowed = [service.name for service in SERVICES if service.scalable]
    scale = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in allowed or not number.isdigit() or not 1 <= int(number) <= MOST:
            names = ", ".join(allowed)
            raise LaunchError(f"--scale {text}: write NAME=NUMBER, NAME one of {names}, NUMBER 1 to {MOST}.")
        scale[name] = int(number)
    return scale


def plan_replicas(services: Sequence[Service], scale: Mapping[str, int], port: int) -> list[Replica]:
    """One of each unless `scale` says more; the gateway on `port`, the others on their own ports and up."""
    replicas = []
    for service in services:
        num = scale.get(service.name, 1)
        for i in range(num):
            name = service.name if num == 1 else f"{service.name}-{i + 1}"
            wanted = port if service.name == "gateway" else service.port and service.port + i
            replicas.append(Replica(name, service, wanted))
    return replicas


def with_free_ports(replicas: Sequence[Replica], port: int) -> list[Replica]:
    """The same, but private servers whose port is taken get a free one; the gateway keeps `port`."""
    wanted = [replica.port for replica in replicas if replica.port and replica.service.name != "gateway"]
    ports = iter(take_ports([port, *wanted])[1:])
    return [
        replace(replica, port=next(ports)) if replica.port and replica.service.name != "gateway" else replica
        for replica in replicas
    ]
