"""Who may do what. Every route names the scope it asks for; an app with one that does not is not served."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from fastapi import FastAPI, Request, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import iter_route_contexts
from fastapi.security import SecurityScopes

from gateway.state import State
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.contracts.problems import Forbidden, Unauthenticated
from vcllm.web.auth import bearer, same_secret

OPEN_PATHS = frozenset({"/health/live", "/health/ready", "/health/startup"})


async def authenticate(request: Request, needed: SecurityScopes, state: State) -> KeyRecord:
    """The caller's key, which has the scopes the route asks for; `admin` has them all."""
    key = bearer(request)
    if key is None:
        raise Unauthenticated("Send an API key, as `Authorization: Bearer vck_...`.")
    record = await state.keys.find(key)
    missing = [scope for scope in needed.scopes if not allows(record, Scope(scope))]
    if missing:
        raise Forbidden(f"This key does not have the scope '{missing[0]}', which is needed here.")
    return record


async def authenticate_scraper(request: Request, needed: SecurityScopes, state: State) -> None:
    """Metrics are for admins and for whoever knows the internal token."""
    if not same_secret(bearer(request), state.settings.internal_token):
        await authenticate(request, needed, state)


def allows(record: KeyRecord, scope: Scope) -> bool:
    return scope in record.scopes or Scope.ADMIN in record.scopes


Chatter = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.CHAT])]
JobReader = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.JOBS_READ])]
JobWriter = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.JOBS_WRITE])]
Reviewer = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.REVIEW])]
Promoter = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.PROMOTE])]
Admin = Annotated[KeyRecord, Security(authenticate, scopes=[Scope.ADMIN])]
SCRAPER = Security(authenticate_scraper, scopes=[Scope.ADMIN])


def scopes_by_route(app: FastAPI) -> dict[str, set[str]]:
    """`METHOD path` to the scopes it asks for; an empty set is a route open to everybody."""
    return {
        f"{'/'.join(sorted(route.methods or {'ANY'}))} {route.path}": set(_scopes(route.dependant))
        if isinstance(getattr(route, "dependant", None), Dependant)
        else set()
        for route in iter_route_contexts(app.routes)
    }


def refuse_open_routes(app: FastAPI) -> None:
    """AssertionError when a route other than health asks for no scope."""
    for route, scopes in scopes_by_route(app).items():
        assert scopes or route.split()[1] in OPEN_PATHS, f"{route} names no scope: it would be open to everybody"


def _scopes(dependant: Dependant) -> Iterator[str]:
    if dependant.call in (authenticate, authenticate_scraper):
        yield from dependant.own_oauth_scopes or ()
    for inner in dependant.dependencies:
        yield from _scopes(inner)
