"""Who may do what. Every route names the scope it asks for; an app with one that does not is not served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from fastapi.security import SecurityScopes
from starlette.types import Receive, Send
from starlette.types import Scope as ASGIScope

from gateway.audit import note_key
from gateway.state import State, state_of
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import Forbidden, Unauthenticated, Unavailable
from vcllm.web.auth import bearer, is_scraper

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup"})


async def authenticate(request: Request, needed: SecurityScopes, state: State) -> KeyRecord:
    """The caller's key, which has the scopes the route asks for; `admin` has them all. Takes nothing of its limits."""
    if len(request.headers.getlist("authorization")) > 1:  # whoever stands between us might have checked the other one
        raise Unauthenticated("Send one Authorization header: there were several.")
    key = bearer(request)
    if key is None:
        raise Unauthenticated("Send an API key, as `Authorization: Bearer vck_...`.")
    record = await state.keys.find(key)
    note_key(request.scope, record.id)
    missing = [scope for scope in needed.scopes if not allows(record, Scope(scope))]
    if missing:
        raise Forbidden(f"This key does not have the scope '{missing[0]}', which is needed here.")
    return record


async def authorize(request: Request, response: Response, needed: SecurityScopes, state: State) -> KeyRecord:
    """As `authenticate`, for all but chat: counted among the key's requests, and audited where it is to be.

    Overloaded when they are too many; Unavailable while Redis is too slow or away, so that nobody waits for it.
    """
    record = await authenticate(request, needed, state)
    if state.gate.fault is not None:
        raise Unavailable("Redis does not answer in time; until it does, only chat is served.", retry_after_s=5)
    for name, value in state.quota.count(record):
        response.headers[name.decode()] = value.decode()
    await state.audit.begin(request.scope, record.id)
    return record


async def authenticate_scraper(request: Request, needed: SecurityScopes, state: State) -> None:
    """Metrics are for admins and for whoever has the scrape token; also while Redis is away."""
    if not is_scraper(request, state.settings.internal_token):
        await authenticate(request, needed, state)


def allows(record: KeyRecord, scope: Scope) -> bool:
    return scope in record.scopes or Scope.ADMIN in record.scopes


class KeyFirst(APIRoute):
    """Looks at the key before the body is read: who has no right makes nobody receive or parse anything."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.needed = SecurityScopes(sorted(scopes_of(self.dependant)))
        assert self.needed.scopes, f"{self.path} names no scope: it would be open to everybody"

    async def handle(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        if scope["method"] in (self.methods or ()):
            request = Request(scope)
            await authenticate(request, self.needed, state_of(request))
        await super().handle(scope, receive, send)


Chatter = Annotated[KeyRecord, Security(authorize, scopes=[Scope.CHAT])]
JobReader = Annotated[KeyRecord, Security(authorize, scopes=[Scope.JOBS_READ])]
JobWriter = Annotated[KeyRecord, Security(authorize, scopes=[Scope.JOBS_WRITE])]
Reviewer = Annotated[KeyRecord, Security(authorize, scopes=[Scope.REVIEW])]
Promoter = Annotated[KeyRecord, Security(authorize, scopes=[Scope.PROMOTE])]
Admin = Annotated[KeyRecord, Security(authorize, scopes=[Scope.ADMIN])]
SCRAPER = Security(authenticate_scraper, scopes=[Scope.ADMIN])


def scopes_by_operation(app: FastAPI) -> dict[str, set[str]]:
    """As `scopes_by_route`, each method for itself."""
    found: dict[str, set[str]] = {}
    for route, scopes in scopes_by_route(app).items():
        methods, path = route.split()
        found |= {f"{method} {path}": scopes for method in methods.split("/")}
    return found


def scopes_by_route(app: FastAPI) -> dict[str, set[str]]:
    """`METHOD path` to the scopes it asks for; an empty set is a route open to everybody."""
    return {
        f"{'/'.join(sorted(route.methods or {'ANY'}))} {route.path}": set(scopes_of(route.dependant))
        if isinstance(getattr(route, "dependant", None), Dependant)
        else set()
        for route in iter_route_contexts(app.routes)
    }


def refuse_open_routes(app: FastAPI) -> None:
    """AssertionError when a route other than health asks for no scope."""
    for route, scopes in scopes_by_route(app).items():
        assert scopes or route.split()[1] in OPEN_PATHS, f"{route} names no scope: it would be open to everybody"


def scopes_of(dependant: Dependant) -> Iterator[str]:
    """Those that a route, or what it depends on, asks for."""
    if dependant.call in (authenticate, authorize, authenticate_scraper):
        yield from dependant.own_oauth_scopes or ()
    for inner in dependant.dependencies:
        yield from scopes_of(inner)
