"""How the gateway listens and what it allows; where everything else is stands in `vcllm.settings`."""

from __future__ import annotations

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from vcllm.web.browsers import read_hosts, read_origins


class GatewaySettings(BaseSettings):
    """The variables begin with `GATEWAY_`."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_upload_bytes: int = Field(default=100 << 20, ge=1024)
    """Of one uploaded file."""
    upload_timeout_s: float = Field(default=600.0, gt=0)
    """How long an uploaded file may take to arrive."""
    max_chats: int = Field(default=1024, ge=1)
    """Chat requests being answered at once; more are refused with 429."""
    drain_pause_s: float = Field(default=0.5, ge=0, le=25)
    """How long it serves on after it was told to stop, not ready any more: longer than the balancer's probe period."""
    answer_timeout_s: float = Field(default=600.0, gt=0)
    """Longest silence of an Actor before its answer is given up."""
    key_ttl_s: float = Field(default=10.0, ge=0)
    """How long a looked-up key is trusted: the longest a revoked key works on another gateway."""
    key_grace_s: float = Field(default=300.0, ge=0)
    """How long a key known before is still trusted while Redis does not answer."""
    charter: str = "pluralist"
    """Name of the charter by which the guard stands between Actor and reader, or does not."""
    guard_timeout_s: float = Field(default=10.0, gt=0)
    """How long the Critic may take for one check before it counts as an outage."""
    requests_per_minute: int = Field(default=0, ge=0)
    """Of a key that names no limit of its own; 0: as many as it likes. So the next two."""
    tokens_per_minute: int = Field(default=0, ge=0)
    concurrent_chats: int = Field(default=0, ge=0)
    cors_origins: str = ""
    """Comma-separated origins whose pages may call the gateway from a browser; empty: none may."""
    allowed_hosts: str = ""
    """Comma-separated host names it answers to, `*.example.org` among them; empty: any."""
    alias_ttl_s: float = Field(default=2.0, ge=0)
    """How long a promotion may go unnoticed here."""

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, text: str) -> str:
        read_origins(text)
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, text: str) -> str:
        read_hosts(text)
        return text
