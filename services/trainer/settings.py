"""What only the trainer needs to know; the variables begin with `TRAINER_`."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class TrainerSettings(BaseSettings):
    """How patient the trainer is."""

    model_config = SettingsConfigDict(env_prefix="TRAINER_", frozen=True, extra="ignore")

    max_attempts: int = Field(default=5, ge=1)
    """A job whose workers vanished this often is given up."""
    """Runs that were paused, or given back by a worker that was told to end, do not count."""
    grace_s: float = Field(default=60.0, ge=0)
    """How long a training run may take to write a checkpoint when it is to pause or its worker is to end; then it is
    killed and goes on from the checkpoint before. Whoever stops the worker should wait somewhat longer."""
    resend_every_s: float = Field(default=120.0, gt=0)
    """A queued job's message is sent again this often: it may have been lost with a broker or a worker."""
    reap_every_s: float = Field(default=10.0, gt=0)
    poll_s: float = Field(default=0.25, gt=0)
    """How often a waiting pipeline looks at its stages."""
    metrics_port: int | None = Field(default=None, ge=1, le=65535)
    """Where a worker and the reaper tell their metrics; None: nowhere. On one machine each needs a port of its own."""
    metrics_host: str = "127.0.0.1"
    """Interface of that port. It asks nobody who they are: open it to a network of your own only."""
    patience_s: float = Field(default=120.0, gt=0)
    """How long a role server may be away before a job that needs it fails."""
