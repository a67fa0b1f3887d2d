"""Where servers are: addresses as the operator writes them, and every place that a host name leads to."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

RESOLVE_EVERY_S = 2.0
KEEP_ALIVE_S = 4.0
"""Below the servers' 5 s, so that an idle connection is closed by us and not under a request."""


@dataclass(frozen=True)
class Address:
    """One place to connect to."""

    url: str
    host: str | None = None
    """The name it was found by, for the `Host` header; None: the URL says it."""


def checked(urls: Iterable[str]) -> list[str]:
    """The same addresses, of which there must be one, each `http://` or `https://`; ValueError otherwise."""
    addresses = [url.rstrip("/") for url in urls]
    for url in addresses:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"'{url}' is not an address of a server. Write it as http://host:port.")
    if not addresses:
        raise ValueError("There is no address of a server. Name at least one, as http://host:port.")
    return addresses


def look_up(url: str) -> list[Address]:
    """Every address of the URL's host, one family only; OSError when the name is unknown.

    An https URL stays as it is: its certificate is bound to the name.
    """
    parsed = urlsplit(url)
    if parsed.scheme != "http" or parsed.hostname is None:
        return [Address(url)]
    found = socket.getaddrinfo(parsed.hostname, parsed.port or 80, type=socket.SOCK_STREAM)
    families = {family for family, *_ in found}
    family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
    hosts = sorted({str(where[0]) for kind, *_, where in found if kind == family})
    if hosts == [parsed.hostname]:
        return [Address(url)]
    port = "" if parsed.port is None else f":{parsed.port}"
    named = [f"[{host}]" if ":" in host else host for host in hosts]
    return [Address(f"http://{host}{port}{parsed.path}", parsed.netloc) for host in named]
