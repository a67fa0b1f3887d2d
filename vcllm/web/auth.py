"""Who may call a role server, and who may read metrics: services of this installation, and its scraper."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable

from fastapi import Request
from pydantic import SecretStr

from vcllm.contracts.manifests import Role
from vcllm.contracts.problems import Unauthenticated
from vcllm.web.tokens import Verifier, scrape_token

Check = Callable[[Request], Awaitable[None]]


def bearer(request: Request) -> str | None:
    """The credential of `Authorization: Bearer ...`; None when there is none."""
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    return credential.strip() or None if scheme.lower() == "bearer" else None


def same_secret(given: str | None, expected: SecretStr) -> bool:
    """Compared in constant time; an empty expected secret matches nothing."""
    wanted = expected.get_secret_value()
    return bool(wanted) and given is not None and hmac.compare_digest(given.encode(), wanted.encode())


def services_only(secret: SecretStr, role: Role, key: SecretStr | None = None) -> Check:
    """A dependency that lets pass who has a service token for `role`; ValueError when the secret is empty.

    key: one that opens it as well, for a server that is no part of a fleet; None or empty: there is none.
    """
    verifier = Verifier(secret, role)

    async def check(request: Request) -> None:
        token = bearer(request)
        if token is None:
            raise Unauthenticated(f"The {role} answers only to services of this installation. Ask the gateway.")
        if key is None or not same_secret(token, key):
            verifier.check(token)

    return check


def scrapers_only(secret: SecretStr) -> Check:
    """A dependency for `/metrics`; ValueError when the secret is empty."""
    scrape_token(secret)  # says so now when it is empty

    async def check(request: Request) -> None:
        if not is_scraper(request, secret):
            raise Unauthenticated("Metrics are for whoever has the scrape token. `vcllm scrape-token` shows it.")

    return check


def is_scraper(request: Request, secret: SecretStr) -> bool:
    """Whether it brings the scrape token."""
    return same_secret(bearer(request), SecretStr(scrape_token(secret)))
