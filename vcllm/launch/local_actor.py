"""An Actor on loopback for one folder, for as long as a command needs it: how a local model is asked over HTTP.

It is the same server that serves versions, so what is measured is what would be served.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import httpx
from pydantic import SecretStr

from vcllm.launch.errors import LaunchError
from vcllm.launch.ports import LOOPBACK, free_port
from vcllm.launch.tether import tethered

START_S = 600.0
"""A large model takes its time."""
STOP_S = 15.0


class LocalActor:
    """Use as a context: inside it the folder's model answers at `url`, after it nothing runs."""

    def __init__(self, folder: Path, start_s: float = START_S) -> None:
        self.folder = folder
        self.start_s = start_s
        self.port = free_port()
        self.key = SecretStr(secrets.token_urlsafe(32))

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def __enter__(self) -> LocalActor:
        if not (self.folder / "config.json").is_file():
            raise LaunchError(f"{self.folder} holds no model: its config.json is missing. Name the model's own folder.")
        self._home = tempfile.TemporaryDirectory(prefix="vcllm-local-")
        self._log = (Path(self._home.name) / "actor.log").open("w+", encoding="utf-8")
        command = [*tethered("python"), "-m", "services.actor"]
        self._process = subprocess.Popen(command, env=self._environment(), stdout=self._log, stderr=self._log)
        try:
            self.model = self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()
        self._home.cleanup()

    def _environment(self) -> dict[str, str]:
        own = {
            "ACTOR_MODEL_PATH": str(self.folder.resolve()),
            "ACTOR_PORT": str(self.port),
            "ACTOR_HOST": LOOPBACK,
            "VCLLM_HOME": self._home.name,
            "ACTOR_MODEL_KEY": self.key.get_secret_value(),
            "VCLLM_INTERNAL_TOKEN": secrets.token_urlsafe(32),  # it belongs to no fleet
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("ACTOR_UPSTREAM")}
        return {**kept, **own}

    def _wait(self) -> str:
        """The name the model is served under, once it is."""
        give_up = time.monotonic() + self.start_s
        headers = {"Authorization": f"Bearer {self.key.get_secret_value()}"}
        with httpx.Client(base_url=self.url, headers=headers, timeout=5.0, trust_env=False) as client:
            while time.monotonic() < give_up:
                if self._process.poll() is not None:
                    raise self._refusal(self._last_words())
                with suppress(httpx.TransportError):  # it does not listen yet
                    if client.get("/health/startup").status_code == 200:  # it has tried to load its one model
                        ready = client.get("/health/ready")
                        if ready.status_code == 200:
                            return _first(client)
                        raise self._refusal(ready.json()["detail"])
                time.sleep(0.2)
        raise LaunchError(f"The model in {self.folder} was not ready after {self.start_s:.0f} s: {self._last_words()}")

    def _refusal(self, reason: str) -> LaunchError:
        return LaunchError(f"The model in {self.folder} cannot be served: {reason}")

    def _last_words(self) -> str:
        self._log.flush()
        lines = Path(self._log.name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def _first(client: httpx.Client) -> str:
    return str(client.get("/v1/models").json()["data"][0]["parent"])
