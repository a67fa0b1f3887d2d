"""`python -m gateway`: serve until told to stop. What keeps it from starting is said in one sentence."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import sys
import time
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
from vcllm.web.addresses import checked
from vcllm.web.connections import SERVED
from vcllm.web.logs import WITH_REQUEST, set_up_logs
from vcllm.web.spans import add_tracing
from vcllm.web.tracing import open_recorder

DRAIN_S = 30
"""How long answers may go on after the gateway was told to stop."""


class DrainingServer(uvicorn.Server):
    """When told to stop it is not ready at once, serves on for a pause, then closes its port and finishes what runs.

    The app knows it from the beginning, so that what would never end by itself ends now. A second signal ends it hard.
    """

    def __init__(self, config: uvicorn.Config, app: FastAPI, pause_s: float) -> None:
        super().__init__(config)
        self.app = app
        self.pause_s = pause_s
        self._told: tuple[float, int] | None = None
        """When, by the monotonic clock, and with which signal."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.draining = True
        if self._told is None:
            self._told = time.monotonic(), sig
        else:
            self.force_exit = True
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        if self._told is not None and time.monotonic() >= self._told[0] + self.pause_s and not self.should_exit:
            super().handle_exit(self._told[1], None)
        return await super().on_tick(counter)


class CannotStart(Exception):
    """One sentence that says what is wrong and what to do."""


def main() -> int:
    try:
        settings, limits = read_settings()
        check_redis(settings)
        set_up_logs("gateway", settings.log_format, settings.log_level, text=WITH_REQUEST)
        app = make_app(settings, limits)
        listener = listen(limits)
    except CannotStart as reason:
        print(f"The gateway cannot start: {reason}", file=sys.stderr)
        return 1
    recorder = open_recorder("gateway")
    add_tracing(app, recorder)
    config = uvicorn.Config(
        app,
        **SERVED,
        backlog=2048,
        timeout_graceful_shutdown=DRAIN_S,
    )
    print(f"The gateway listens on http://{limits.host}:{limits.port}", flush=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn drains on it, then raises it again: that is the end
    gc.set_threshold(20_000, 50, 100)
    gc.freeze()  # what the imports made stays for ever, and need not be looked through again and again
    with suppress(KeyboardInterrupt):
        DrainingServer(config, app, limits.drain_pause_s).run(sockets=[listener])
    if recorder is not None:
        recorder.close()
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


def make_app(settings: Settings, limits: GatewaySettings) -> FastAPI:
    try:
        return create_app(settings, limits)
    except ValueError as error:
        raise CannotStart(str(error)) from error


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


if __name__ == "__main__":
    sys.exit(main())
