"""Runs one model server as a process: its checks before the start, its port, its drain."""

from __future__ import annotations

import gc
import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import BaseSettings, SettingsError

from vcllm.serving.settings import ServerSettings, WriterSettings
from vcllm.settings import Settings
from vcllm.web.connections import SERVED
from vcllm.web.doorkeeper import Doorkeeper
from vcllm.web.logs import set_up_logs
from vcllm.web.spans import add_tracing
from vcllm.web.tracing import open_recorder

log = logging.getLogger(__name__)

TOKEN_MISSING = "The internal token is empty. Set VCLLM_INTERNAL_TOKEN to a long random string."

LAST_WORDS_S = 1.0
"""For those who are still inside after `drain_s`: they are told, then the port's last connections are cut."""

S = TypeVar("S", bound=ServerSettings)


class CannotStart(Exception):
    """A sentence for the operator."""


def run_server(server_settings: type[S], create_app: Callable[[S, Settings], FastAPI]) -> int:
    """Serve until SIGTERM or SIGINT, then finish what runs; the exit code. A second signal ends it at once.

    Configured by the environment; prints one sentence when it cannot start.
    """
    try:
        server, shared = read_settings(server_settings)
        if not has_upstream(server):
            prepare_device(server)
        listening = listen(server)
    except CannotStart as sentence:
        print(sentence, file=sys.stderr)
        return 1
    role = variable_of(server_settings, "").rstrip("_").lower()
    set_up_logs(role, shared.log_format, shared.log_level)
    app = create_app(server, shared)
    recorder = open_recorder(role)
    add_tracing(app, recorder)
    config = uvicorn.Config(
        app,
        **SERVED,
        timeout_graceful_shutdown=math.ceil(server.drain_s + LAST_WORDS_S),
    )
    gc.freeze()  # what the imports made stays for ever; looking through it again stops every stream for 0.3 s
    gc.enable()
    DrainingServer(config, app.state.keeper, server.drain_s, server.drain_pause_s).run(sockets=[listening])
    if recorder is not None:
        recorder.close()
    return 0


class DrainingServer(uvicorn.Server):
    """On the first signal it is not ready and refuses work; after a pause it closes its port and waits for the rest."""

    def __init__(self, config: uvicorn.Config, keeper: Doorkeeper, drain_s: float, pause_s: float) -> None:
        super().__init__(config)
        self.keeper = keeper
        self.drain_s = drain_s
        self.pause_s = min(pause_s, drain_s)
        self._told_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Notes the signal only: it may have come at any moment, also in the middle of the event loop's own work."""
        if self._told_at is None:
            self._told_at = time.monotonic()
            return
        signal.signal(sig, signal.SIG_DFL)
        signal.raise_signal(sig)

    async def on_tick(self, counter: int) -> bool:
        if self._told_at is not None:
            if not self.keeper.draining:
                log.info("Shutting down: %d requests are still inside.", self.keeper.num_inside)
                self.keeper.drain(self.drain_s)
            if time.monotonic() >= self._told_at + self.pause_s:
                self.should_exit = True
        return await super().on_tick(counter)


def read_settings(server_settings: type[S]) -> tuple[S, Settings]:
    """The server's own settings and the shared ones, complete."""
    try:
        server, shared = server_settings(), Settings()
    except ValidationError as error:
        first = error.errors()[0]
        whose = server_settings if error.title == server_settings.__name__ else Settings
        variable = variable_of(whose, str(first["loc"][0]))
        # An address with an "@" in it may hold a password.
        shown = variable if "@" in str(first["input"]) else f"{variable}={first['input']}"
        raise CannotStart(f"{shown} cannot be used: {first['msg']}.") from error
    except SettingsError as error:
        raise CannotStart(str(error)) from error
    if not shared.internal_token.get_secret_value():
        raise CannotStart(TOKEN_MISSING)
    return server, shared


def has_upstream(server: ServerSettings) -> bool:
    """Whether the model runs elsewhere, so that nothing here needs torch."""
    return isinstance(server, WriterSettings) and bool(server.upstream_url)


def prepare_device(server: ServerSettings) -> None:
    """Find out now, not when the first version is loaded, whether the device can be used."""
    import torch
    from transformers.utils import logging as transformers_logging

    try:
        torch.empty(0, device=server.device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise CannotStart(f"{variable_of(type(server), 'device')}={server.device} cannot be used: {reason}") from error
    if server.threads:
        torch.set_num_threads(server.threads)
    transformers_logging.disable_progress_bar()


def listen(server: ServerSettings) -> socket.socket:
    """The server's port, taken."""
    listening = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((server.host, server.port))
        listening.listen(1024)
    except OSError as error:
        listening.close()
        where, variable = f"{server.host}:{server.port}", variable_of(type(server), "port")
        sentence = f"Cannot listen on {where}: {error.strerror}. Set {variable} to a free port."
        raise CannotStart(sentence) from error
    return listening


def variable_of(settings: type[BaseSettings], field: str) -> str:
    """The environment variable of a setting."""
    return f"{settings.model_config.get('env_prefix', '')}{field}".upper()
