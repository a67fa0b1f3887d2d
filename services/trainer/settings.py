"""What only the trainer needs to know; the variables begin with `TRAINER_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """How patient the trainer is."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_", frozen=True, extra="ignore")

    max_attempts: int = Field(default=5, ge=1)
    """A job whose workers vanished this often is given up."""
    reap_every_s: float = Field(default=10.0, gt=0)
    poll_s: float = Field(default=0.25, gt=0)
    """How often a waiting pipeline looks at its stages."""
    patience_s: float = Field(default=120.0, gt=0)
    """How long a role server may be away before a job that needs it fails."""
