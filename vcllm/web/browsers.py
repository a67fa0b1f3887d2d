"""What stands between a service and browsers: which pages may call it, under which names, and what they may keep.

Pure ASGI. Who may do what is decided by keys, never here; no cookie is ever read, so none is allowed across origins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vcllm.web.replies import error_reply

Layer = Callable[[ASGIApp], ASGIApp]

READABLE = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-should-retry",
    "x-vc-version",
    "x-vc-critic-version",
    "x-vc-verdict",
    "x-vc-policy",
    "x-vc-guard-ms",
    "x-vc-overhead-ms",
    "x-vc-queue-ms",
    "x-vc-replica",
    "server-timing",
    *(f"x-ratelimit-{part}-{what}" for what in ("requests", "tokens") for part in ("limit", "remaining", "reset")),
)
"""Headers of a reply that a page of an allowed origin may read."""
PREFLIGHT_KEPT_S = 600

_NO_SNIFF = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")
_HOST = re.compile(r"(\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\]")


def read_origins(text: str) -> tuple[str, ...]:
    """Comma-separated origins; ValueError when one is not exactly an origin as browsers send it."""
    origins = _listed(text)
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.hostname or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(
                f"'{origin}' is not an origin. Write scheme and host, and a port if any: https://example.org"
            )
        if "*" in origin or "@" in origin or origin != origin.lower():
            raise ValueError(f"'{origin}' is not one origin, in lower case, without wildcards and user names.")
    return origins


def read_hosts(text: str) -> tuple[str, ...]:
    """Comma-separated host names without ports, `*.example.org` for all below it; ValueError for anything else."""
    hosts = tuple(host.lower() for host in _listed(text))
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise ValueError(f"'{host}' is not a host name. Write it without a port: example.org, or *.example.org.")
    return hosts


def cross_origin(origins: Sequence[str]) -> Layer:
    """Lets pages of these origins, and of no other, call the service with a key of theirs."""
    return partial(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],  # SDKs send headers of their own; a key is needed all the same
        allow_credentials=False,
        expose_headers=list(READABLE),
        max_age=PREFLIGHT_KEPT_S,
    )


class KnownHosts:
    """Answers only requests for names it is known by, against pages that rebind theirs to this address.

    Starlette's own layer would refuse health probes, which name an address, and answer in plain text.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app = app
        self._exact = frozenset(host for host in hosts if not host.startswith("*."))
        self._below = tuple(host[1:] for host in hosts if host.startswith("*."))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/health/") or self._knows(scope):
            await self.app(scope, receive, send)
            return
        reply = error_reply(
            400, "This server does not answer to that host name.", "invalid_request_error", "unknown_host"
        )
        await reply(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        sent = [value.decode("latin-1").lower() for name, value in scope["headers"] if name == b"host"]
        if len(sent) != 1:
            return False
        host = re.sub(r":\d*$", "", sent[0])
        return host in self._exact or host.endswith(self._below)


class SafeReplies:
    """No reply is taken for another type than it says, and no answer of the API is kept on the way."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_api = scope["path"].startswith("/v1/")

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], _NO_SNIFF]
                if is_api and not any(name == b"cache-control" for name, _ in headers):
                    headers.append(_NO_STORE)
                message["headers"] = headers
            await send(message)

        await self.app(scope, receive, send_safely)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())
