"""A test that talks to a role server as a service of the installation does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx
from pydantic import SecretStr

from vcllm.contracts.manifests import Role
from vcllm.web.tokens import Issuer, Signer, scrape_token


class ServiceAuth(httpx.Auth):
    """Signs every request that does not bring an `Authorization` of its own; reads metrics as a scraper does."""

    def __init__(self, secret: str, role: Role, issuer: Issuer = "trainer") -> None:
        self.role = role
        self._signer = Signer(SecretStr(secret), issuer)
        self._scraping = scrape_token(SecretStr(secret))

    @property
    def token(self) -> str:
        return self._signer.header(self.role).removeprefix("Bearer ")

    def auth_flow(self, request: httpx.Request) -> Iterator[httpx.Request]:  # type: ignore[override]
        token = self._scraping if request.url.path == "/metrics" else self.token
        request.headers.setdefault("authorization", f"Bearer {token}")
        yield request


def token_maker(secret: str, role: Role) -> Callable[[], str]:
    """What the `openai` SDK takes for an API key that changes."""
    auth = ServiceAuth(secret, role)
    return lambda: auth.token
