"""The description of each service's API: whole, true to what the service does, and shown to nobody who did not ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from pydantic import SecretStr

from gateway.app import create_app
from gateway.auth import scopes_by_operation
from gateway.openapi import description
from gateway.settings import GatewaySettings
from tests.role_servers import APPS
from vcllm.settings import Settings

ROOT = Path(__file__).parents[2]


def apps(home: Path) -> dict[str, FastAPI]:
    settings = Settings(home=home, internal_token=SecretStr("internal"), pepper=SecretStr("pepper"))
    return {"gateway": create_app(settings, GatewaySettings()), **{role: APPS[role](settings) for role in APPS}}


@pytest.fixture(params=["gateway", "attacker", "actor", "critic"])
def app(request: pytest.FixtureRequest, tmp_path: Path) -> FastAPI:
    return apps(tmp_path)[request.param]


def operations(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By `METHOD path`."""
    return {
        f"{method.upper()} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_every_route_is_described(app: FastAPI):
    """And nothing else."""
    routes = {f"{method} {route.path}" for route in iter_route_contexts(app.routes) for method in route.methods or ()}

    assert set(operations(app.openapi())) == routes


def test_whatever_is_named_is_there(app: FastAPI):
    """Schemas of bodies that a route reads by itself are among them."""
    described = app.openapi()
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(described)))

    assert named - set(described["components"]["schemas"]) == set()
    assert "HTTPValidationError" not in described["components"]["schemas"]


def test_every_operation_but_health_asks_for_a_credential(app: FastAPI):
    """With the scopes that the gateway really asks for, which `test_doors` holds it to."""
    described = app.openapi()
    scopes = scopes_by_operation(app) if app.title == "gateway" else {}

    (scheme,) = described["components"]["securitySchemes"].values()
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for name, operation in operations(described).items():
        wanted = None if " /health/" in name else [{"bearer": sorted(map(str, scopes.get(name, ())))}]
        assert operation.get("security") == wanted, name


def test_every_operation_tells_of_its_errors(app: FastAPI):
    """One body for all of them; there is no 422 with a list."""
    for name, operation in operations(app.openapi()).items():
        if " /health/" not in name:
            for statuses in ("4XX", "5XX"):
                schema = operation["responses"][statuses]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Error"}, name
        assert "422" not in operation["responses"]


def test_every_body_is_described(app: FastAPI):
    """Each POST and PUT says what it takes, but for those that act on what the address names."""
    without = {"cancel", "pause", "resume", "stop", "abort"}
    for name, operation in operations(app.openapi()).items():
        if name.startswith(("POST", "PUT")) and name.rpartition("/")[2] not in without:
            assert operation["requestBody"]["content"], name


def test_the_description_is_printed(tmp_path: Path):
    """By `python -m gateway.openapi`, with neither Redis nor secrets, and the same as the app's own."""
    bare = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "gateway.openapi"]
    printed = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True, check=True)

    assert json.loads(printed.stdout) == json.loads(json.dumps(description()))
    assert json.loads(printed.stdout) == json.loads(json.dumps(apps(tmp_path)["gateway"].openapi()))
