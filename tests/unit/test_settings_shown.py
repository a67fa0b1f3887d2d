"""Settings may be printed, also by somebody who did not think of what is in them."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from vcllm.settings import Settings


def test_settings_show_no_secret():
    """Neither the tokens nor the password, which is a part of an address."""
    settings = Settings(
        redis_password=SecretStr("canary-password"),
        redis_url="redis://127.0.0.1:6379/0",
        internal_token=SecretStr("canary-internal"),
        pepper=SecretStr("canary-pepper"),
    )

    assert "canary-password" in settings.redis_url
    for shown in (repr(settings), str(settings), f"{settings!r:>10}"):
        assert "canary" not in shown


def test_a_wrong_address_is_not_repeated_with_its_password():
    """The error says which setting it is, not what was in it."""
    with pytest.raises(ValidationError) as raised:
        Settings(redis_password=SecretStr("x"), redis_url="redis://:canary-password@127.0.0.1:6379/0")

    assert "redis_url" in str(raised.value)
    assert "canary" not in str(raised.value)
