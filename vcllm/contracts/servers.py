"""What a model server tells operators of itself."""

from __future__ import annotations

from vcllm.contracts.base import Contract
from vcllm.contracts.manifests import Role


class ServerReport(Contract):
    """Which version one server serves, and what keeps it from serving another."""

    role: Role
    server: str
    """Host and port."""
    current: str | None
    """None: it serves nothing yet, except versions asked for by name."""
    checksum: str | None
    """sha256 over the manifest of the current version, as it was loaded."""
    pending: str | None
    """The version it was told to serve and does not serve yet."""
    refused: bool
    """Whether the pending version failed its checks; it is tried again every half minute."""
    reason: str | None
    """Why the pending version is refused, or what it waits for; None: it is being loaded."""


class ServerReports(Contract):
    """`GET /v1/servers`."""

    data: list[ServerReport]
