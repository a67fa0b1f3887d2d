"""The Attacker's own settings; variables begin with `ATTACKER_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from vcllm.serving.settings import WriterSettings


class AttackerSettings(WriterSettings):
    """Where the Attacker listens and what it may use."""

    model_config = SettingsConfigDict(env_prefix="ATTACKER_", frozen=True, extra="ignore")

    port: int = Field(default=8101, ge=0, le=65535)
