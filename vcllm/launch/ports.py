"""Ports on the loopback interface."""

from __future__ import annotations

import socket
from collections.abc import Iterable

LOOPBACK = "127.0.0.1"


def is_free(port: int, host: str = LOOPBACK) -> bool:
    """Whether a server could listen there now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def take_ports(wanted: Iterable[int]) -> list[int]:
    """For each wanted port that port, or a free one where it is taken; all of them different."""
    taken: list[int] = []
    for port in wanted:
        taken.append(port if port not in taken and is_free(port) else _any_free_port(taken))
    return taken


def free_port() -> int:
    return _any_free_port([])


def _any_free_port(taken: list[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port = int(probe.getsockname()[1])
        if port not in taken:
            return port
