"""The Actor's own settings; variables begin with `ACTOR_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from vcllm.serving.settings import WriterSettings


class ActorSettings(WriterSettings):
    """Where the Actor listens and what it may use."""

    model_config = SettingsConfigDict(env_prefix="ACTOR_", frozen=True, extra="ignore")

    port: int = Field(default=8201, ge=0, le=65535)
