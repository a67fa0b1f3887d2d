"""Adapters that a running vLLM server takes up and lets go of."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.engine.chunks import Part, parse
from vcllm.engine.upstream import Connection


@dataclass(frozen=True, slots=True)
class Adapter:
    """A PEFT adapter, as the server knows it."""

    name: str
    path: str
    """Of its folder, as the server sees it."""


class Served(Part):
    """A model that an upstream server lists."""

    id: str
    root: str | None = None
    """Where its weights came from, in the server's own eyes."""


class ServedModels(Part):
    data: list[Served] = Field(default_factory=list)


async def served_models(connection: Connection) -> list[Served]:
    """What the server has now."""
    return parse(ServedModels, await connection.get("/v1/models")).data


async def load_adapter(connection: Connection, adapter: Adapter) -> None:
    """Have the server hold the adapter, which it may do already; BadRequest or NotFound when it will not.

    A server that was started again has forgotten its adapters, so this may be called at any time.
    """
    try:
        await connection.post("/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": adapter.path})
    except BadRequest:
        if not await holds(connection, adapter):
            raise


async def holds(connection: Connection, adapter: Adapter) -> bool:
    """Whether the server has these very weights under this name."""
    return Served(id=adapter.name, root=adapter.path) in await served_models(connection)


async def unload_adapter(connection: Connection, adapter: Adapter) -> None:
    """Have the server let go of it; one it does not have is no matter."""
    try:
        await connection.post("/v1/unload_lora_adapter", {"lora_name": adapter.name})
    except NotFound:
        return
