"""The Critic's own settings; variables begin with `CRITIC_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from vcllm.serving.settings import ServerSettings


class CriticSettings(ServerSettings):
    """Where the Critic listens and what it may use."""

    model_config = SettingsConfigDict(env_prefix="CRITIC_", frozen=True, extra="ignore")

    port: int = Field(default=8301, ge=0, le=65535)
    max_waiting: int = Field(default=8192, ge=1)
    """Answers to be judged, over all requests."""
    max_waiting_tokens: int = Field(default=1 << 23, ge=1)
    """Tokens of their texts."""
