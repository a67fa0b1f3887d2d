"""The description of an API (OpenAPI 3.1): FastAPI's own, put right where our services answer otherwise than it thinks.

Wrong input is 400 here and never 422 with a list; every error has one body; who may call is found out by dependencies
that FastAPI does not take for security; some routes read their body by themselves. Who may read the description is not
decided here: no service has a route for it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

ERROR_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "The error body of the OpenAI API, the same on every status.",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong, and what to do."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field or parameter that is wrong."},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS = {"4XX": "It is refused; the body says why.", "5XX": "It could not be served; the body says why."}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
"""`responses=` of a route that answers in server-sent events where it is asked to."""

_REF = "#/components/schemas/{model}"
_BEARER = "bearer"
_OPEN = "/health/"
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra=` of a route that reads its body by itself; the app's `read_by_hand` has the model, too."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def put_right(
    description: dict[str, Any],
    read_by_hand: Sequence[type[BaseModel]],
    credential: str,
    scopes: Mapping[str, Collection[str]],
) -> dict[str, Any]:
    """Changes the description, and gives it back.

    credential: what is sent as a bearer credential, to all but health. scopes: by `METHOD path`, where there are any.
    """
    components = description.setdefault("components", {})
    components["securitySchemes"] = {_BEARER: {"type": "http", "scheme": "bearer", "description": credential}}
    schemas = components.setdefault("schemas", {})
    _, more = models_json_schema([(model, "validation") for model in read_by_hand], ref_template=_REF)
    for name, schema in more.get("$defs", {}).items():
        schemas.setdefault(name, schema)
    for name in _NOT_OURS:
        schemas.pop(name, None)
    schemas["Error"] = ERROR_SCHEMA
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            operation["responses"].pop("422", None)
            if not path.startswith(_OPEN):
                operation["responses"] |= _errors()
                operation["security"] = [{_BEARER: sorted(map(str, scopes.get(f"{method.upper()} {path}", ())))}]
    return description


def _errors() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {statuses: {"description": text, "content": content} for statuses, text in ERRORS.items()}
