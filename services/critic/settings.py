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
    charter: str = "pluralist"
    """Name of the charter by whose rubric a language model judges; trained heads need none."""
    min_mass: float = Field(default=0.05, ge=0, le=1)
    """Least probability that a language model stays on the scale; below, there is no score."""
    guard: str = ""
    """A guard model with a veto: `role/version` of the store, a folder or a hub id. Empty: none."""
    guard_safe: list[str] = Field(default=["Safety: Safe", "Safety: Controversial"], min_length=1)
    """What its answer begins with; as it stands here, Qwen3Guard's."""
    guard_unsafe: list[str] = Field(default=["Safety: Unsafe"], min_length=1)
    guard_threshold: float = Field(default=0.5, gt=0, le=1)
    """Probability of the unsafe labels from which on the guard vetoes."""
    max_waiting_tokens: int = Field(default=1 << 23, ge=1)
    """Tokens of their texts."""
