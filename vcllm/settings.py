"""Where things are: addresses, folders, secrets. What to do stands in recipes.

Read from the environment when a service is created, never at import. A secret may also stand in a file, as containers
mount them: `VCLLM_PEPPER_FILE` names the file that holds what `VCLLM_PEPPER` would. Who may read it is not known here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError


class SecretFiles(PydanticBaseSettingsSource):
    """Every field that is a `SecretStr`, from the file that its variable with `_FILE` at the end names.

    SettingsError when the file cannot be read or is empty, or when the variable itself is set as well.
    """

    def __call__(self) -> dict[str, Any]:
        found = {name: self.get_field_value(field, name)[0] for name, field in self.settings_cls.model_fields.items()}
        return {name: secret for name, secret in found.items() if secret is not None}

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        variable = f"{self.config.get('env_prefix', '')}{field_name}".upper()
        file = os.environ.get(f"{variable}_FILE") if field.annotation is SecretStr else None
        if not file:
            return None, field_name, False
        if os.environ.get(variable):
            raise SettingsError(f"{variable} and {variable}_FILE are both set. Leave one of them out.")
        return read_secret_file(Path(file), f"{variable}_FILE"), field_name, False


def read_secret_file(file: Path, variable: str) -> str:
    """Its content without white space around it. variable: who named the file, for the error's sentence."""
    try:
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{variable} names {file}, which cannot be read: {reason}.") from error
    if not secret:
        raise SettingsError(f"{variable} names {file}, which is empty. Put a long random string there.")
    return secret


class SettingsWithSecrets(BaseSettings):
    """Settings from the environment, secrets also from files."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, SecretFiles(settings_cls), env_settings


class Settings(SettingsWithSecrets):
    """Shared by every service; the variables begin with `VCLLM_`."""

    model_config = SettingsConfigDict(env_prefix="VCLLM_", frozen=True, extra="ignore", hide_input_in_errors=True)

    redis_password: SecretStr = SecretStr("")
    """Put into `redis_url`, so that an address in the environment need not hold it. Empty: the address is complete."""
    redis_url: str = Field(default="redis://127.0.0.1:6379/0", validate_default=True, repr=False)
    """Not shown where settings are printed: it holds the password."""
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
    log_format: Literal["text", "json"] = "text"
    """`json`: one object a line, for whatever collects logs."""

    @field_validator("redis_url")
    @classmethod
    def _with_password(cls, url: str, info: ValidationInfo) -> str:
        password: SecretStr | None = info.data.get("redis_password")
        if password is None or not password.get_secret_value():
            return url
        parts = urlsplit(url)
        if parts.scheme not in ("redis", "rediss") or parts.password:
            raise ValueError("with a Redis password beside it, write the address as redis://host:port/0")
        user, _, place = parts.netloc.rpartition("@")
        login = f"{user}:{quote(password.get_secret_value(), safe='')}"
        return urlunsplit(parts._replace(netloc=f"{login}@{place}"))

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
