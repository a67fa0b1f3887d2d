"""Where things are: addresses, folders, secrets. What to do stands in recipes.

Read from the environment when a service is created, never at import.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Shared by every service; the variables begin with `VCLLM_`."""

    model_config = SettingsConfigDict(env_prefix="VCLLM_", frozen=True, extra="ignore")

    redis_url: str = "redis://127.0.0.1:6379/0"
    home: Path = Path("var")
    """State that outlives a process: models, job folders, logs, reports."""
    recipes: Path = Path("recipes")
    charters: Path | None = None
    """A folder of charters beside the shipped one; None: only the shipped one."""
    data: Path = Path("data")
    """The operator's own data, named by recipes."""
    attacker_urls: str = "http://127.0.0.1:8101"
    """Comma-separated addresses; a host name with several addresses counts as several replicas."""
    actor_urls: str = "http://127.0.0.1:8201"
    critic_urls: str = "http://127.0.0.1:8301"
    internal_token: SecretStr = SecretStr("")
    """Shared by the services; the role servers refuse everything else. Empty: role servers refuse to start."""
    pepper: SecretStr = SecretStr("")
    """Secret half of the API-key hashes. Empty: the gateway refuses to start."""
    lease_s: float = Field(default=60.0, gt=0)
    """How long a silent worker keeps its job."""
    body_timeout_s: float = Field(default=30.0, gt=0)
    """How long a request's body may take to arrive."""
    keep_alive_s: float = Field(default=15.0, ge=0)
    """Silence after which a stream sends a comment, so that nothing in between takes it for dead; 0: never."""
    log_level: str = "INFO"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def jobs(self) -> Path:
        return self.home / "jobs"

    def urls(self, role: str) -> list[str]:
        """Addresses of a role's servers."""
        text = {"attacker": self.attacker_urls, "actor": self.actor_urls, "critic": self.critic_urls}[role]
        return [url.strip().rstrip("/") for url in text.split(",") if url.strip()]
