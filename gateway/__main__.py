"""`python -m gateway`: serve until told to stop. What keeps it from starting is said in one sentence."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import sys
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from redis.exceptions import RedisError

from gateway.app import create_app, refuse_missing_secrets
from gateway.settings import GatewaySettings
from vcllm.settings import Settings
from vcllm.stores.connect import open_redis
from vcllm.web.app import RequestIdFilter
from vcllm.web.replicas import checked

DRAIN_S = 30
"""How long answers may go on after the gateway was told to stop."""


class DrainingServer(uvicorn.Server):
    """Tells the app that it was told to stop, so that what would never end by itself ends now."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self.app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.draining = True
        super().handle_exit(sig, frame)


class CannotStart(Exception):
    """One sentence that says what is wrong and what to do."""


def main() -> int:
    try:
        settings, limits = read_settings()
        check_redis(settings)
        listener = listen(limits)
    except CannotStart as reason:
        print(f"The gateway cannot start: {reason}", file=sys.stderr)
        return 1
    set_up_logs(settings.log_level)
    app = create_app(settings, limits)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=DRAIN_S,
    )
    print(f"The gateway listens on http://{limits.host}:{limits.port}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn drains on it, then raises it again: that is the end
    with suppress(KeyboardInterrupt):
        DrainingServer(config, app).run(sockets=[listener])
    return 0


def read_settings() -> tuple[Settings, GatewaySettings]:
    try:
        settings, limits = Settings(), GatewaySettings()
        refuse_missing_secrets(settings)
        checked(settings.urls("actor"))
    except ValidationError as error:
        first = error.errors()[0]
        raise CannotStart(f"{error.title}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from error
    except ValueError as error:
        raise CannotStart(str(error)) from error
    return settings, limits


def check_redis(settings: Settings) -> None:
    try:
        with open_redis(settings.redis_url, patience=0) as redis:
            redis.ping()
    except (RedisError, ValueError, OSError) as error:
        raise CannotStart(
            f"Redis does not answer ({type(error).__name__}). Start it, or correct VCLLM_REDIS_URL."
        ) from error


def listen(limits: GatewaySettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((limits.host, limits.port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise CannotStart(f"port {limits.port} is taken. Set GATEWAY_PORT to a free one.") from error
        raise CannotStart(f"{limits.host}:{limits.port} cannot be opened: {error.strerror}.") from error
    return listener


def set_up_logs(level: str) -> None:
    handler = logging.StreamHandler()
    handler.addFilter(RequestIdFilter())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for chatty in ("httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


if __name__ == "__main__":
    sys.exit(main())
