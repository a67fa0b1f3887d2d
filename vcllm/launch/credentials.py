"""Secrets of one installation, made once and kept under `var/secrets`, readable by their owner only."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from vcllm.settings import Settings
from vcllm.stores.models import write_private

DEMO_KEY = "demo_key"
"""File with the API key that the launcher makes for whoever sits at this machine."""


@dataclass(frozen=True)
class Credentials:
    """What the services share with each other and with nobody else."""

    internal_token: SecretStr
    pepper: SecretStr
    redis_password: SecretStr


def load_credentials(settings: Settings) -> Credentials:
    """Those the settings give; the others are kept on disk, and made where missing or half-written."""
    return Credentials(
        internal_token=_given(settings.internal_token) or _kept(settings.home, "internal_token"),
        pepper=_given(settings.pepper) or _kept(settings.home, "pepper"),
        redis_password=_given(settings.redis_password) or _kept(settings.home, "redis_password"),
    )


def read_secret(home: Path, name: str) -> str | None:
    """The secret, or None when there is none yet."""
    try:
        return (home / "secrets" / name).read_text().strip() or None
    except FileNotFoundError:
        return None


def write_secret(home: Path, name: str, value: str) -> None:
    write_private(home / "secrets" / name, value)


def _given(secret: SecretStr) -> SecretStr | None:
    return secret if secret.get_secret_value() else None


def _kept(home: Path, name: str) -> SecretStr:
    value = read_secret(home, name)
    if value is None or len(value) < 32:
        value = secrets.token_hex(32)
        write_secret(home, name, value)
    return SecretStr(value)
