"""How the gateway listens and what it allows; where everything else is stands in `vcllm.settings`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class GatewaySettings(BaseSettings):
    """The variables begin with `GATEWAY_`."""

    model_config = SettingsConfigDict(env_prefix="GATEWAY_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=1, le=65535)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_chats: int = Field(default=256, ge=1)
    """Chat requests being answered at once; more are refused with 429."""
    answer_timeout_s: float = Field(default=600.0, gt=0)
    """Longest silence of an Actor before its answer is given up."""
    key_ttl_s: float = Field(default=10.0, ge=0)
    """How long a looked-up key is trusted: the longest a revoked key works on another gateway."""
    key_grace_s: float = Field(default=300.0, ge=0)
    """How long a key known before is still trusted while Redis does not answer."""
    alias_ttl_s: float = Field(default=2.0, ge=0)
    """How long a promotion may go unnoticed here."""
