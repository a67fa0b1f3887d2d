"""`python -m gateway.openapi > openapi.json`: the description of the gateway's API, for people and client generators.

It is printed where the gateway is installed and served nowhere: what is not there need not be guarded. Needs neither
Redis nor secrets.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from pydantic import SecretStr

from gateway.app import create_app
from gateway.settings import GatewaySettings
from vcllm.settings import Settings

_ANY = SecretStr("nothing is opened with it")


def description() -> dict[str, Any]:
    """OpenAPI 3.1."""
    return create_app(Settings(internal_token=_ANY, pepper=_ANY), GatewaySettings()).openapi()


if __name__ == "__main__":
    json.dump(description(), sys.stdout, indent=1, ensure_ascii=False)
    print()
