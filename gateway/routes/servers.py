"""Model servers: which version each serves, and which it refuses."""

from __future__ import annotations

from fastapi import APIRouter

from gateway.auth import KeyFirst, Promoter
from gateway.state import State
from vcllm.contracts.servers import ServerReports
from vcllm.stores.servers import ServerStore

router = APIRouter(prefix="/v1/servers", route_class=KeyFirst)


@router.get("")
def list_servers(_: Promoter, state: State) -> ServerReports:
    """What every model server of the last seconds says of itself."""
    return ServerReports(data=ServerStore(state.redis).all())
