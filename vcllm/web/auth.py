"""Who may call a role server: whoever knows the token the services share."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request
from pydantic import SecretStr

from vcllm.contracts.problems import Unauthenticated


def bearer(request: Request) -> str | None:
    """The credential of `Authorization: Bearer ...`; None when there is none."""
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    return credential.strip() or None if scheme.lower() == "bearer" else None


def same_secret(given: str | None, expected: SecretStr) -> bool:
    """Compared in constant time; an empty expected secret matches nothing."""
    wanted = expected.get_secret_value()
    return bool(wanted) and given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def internal_only(token: SecretStr) -> Callable[[Request], Awaitable[None]]:
    """A dependency that lets only the holders of `token` pass; ValueError when it is empty."""
    if not token.get_secret_value():
        raise ValueError("The internal token is empty. Set VCLLM_INTERNAL_TOKEN to a long random string.")

    async def check(request: Request) -> None:
        if not same_secret(bearer(request), token):
            raise Unauthenticated("This server answers only to services that know the internal token.")

    return check
