"""Versions and the aliases that lead to them, as they are listed and moved."""

from __future__ import annotations

from pydantic import Field

from vcllm.contracts.base import Contract, Name
from vcllm.contracts.manifests import Alias, Decision, Role


class AliasMove(Contract):
    """Once `current` was made to mean another version."""

    version: str
    """What it meant from then on."""
    before: str | None = None
    """What it meant until then; None: nothing."""
    when: float
    """Unix seconds."""
    by: str
    """Id of the key that asked, or `trainer`."""
    note: str = ""


class AliasHistory(Contract):
    """`GET /v1/aliases/{role}/history`, newest first."""

    role: Role
    data: list[AliasMove]


class AliasList(Contract):
    """`GET /v1/aliases`."""

    data: dict[Role, dict[Alias, str]]


class AliasSet(Contract):
    """`PUT /v1/aliases/{role}/current`: put a version into service by hand."""

    version: Name
    note: str = Field(default="", max_length=2000)
    """Why, for whoever reads the history."""
    replaces: Name | None = None
    """Only while this version is current; None: whatever is."""
    ungated: bool = False
    """Needed for a version of the Actor that no gate has judged: it is served on your word."""


class VersionSummary(Contract):
    """A version of the model store in one line; `GET /v1/lineage/versions/{role}/{version}` says what it is made of."""

    role: Role
    name: Name
    lineage: Name
    stage: str
    round: int
    created: float
    parent: str | None
    format: str
    aliases: list[str]
    """Those that mean it now."""
    checksum: str
    """sha256 of its manifest; the beginning of it is a reply's `system_fingerprint`."""
    gate: Decision | None = None
    """What became of it: the gate's word, or a person's where the gate held it. None: no gate was asked."""


class VersionList(Contract):
    """`GET /v1/versions`, newest first."""

    data: list[VersionSummary]
    has_more: bool = False
