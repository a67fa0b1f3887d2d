"""Processes that are started, restarted within limits, logged and stopped, by supervisord.

supervisord was chosen over honcho, which restarts nothing and ends everything when one process ends, and over
a supervisor of our own, which would be a few hundred lines with fewer years behind them: it has bounded
restarts with back-off, rotated logs, groups that stop in order, and tells its states over a Unix socket. Its
processes are tethered to it, it to a warden, and that to this process, so a kill -9 of any leaves nothing running.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from xmlrpc.client import Fault, ServerProxy

import psutil

from vcllm.launch.errors import LaunchError
from vcllm.launch.tether import adopt_orphans, tethered

STOP_S = 6
"""How long a service may take to finish what it is doing; then it is killed."""
END_S = 3.5
"""How long everything together may take beyond its slowest program; then what the warden left is killed."""


@dataclass(frozen=True)
class Program:
    """One process to supervise."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    stop_s: float = STOP_S
    """How long it may take to stop; then it is killed."""
    last: bool = False
    """Stopped only after all others have ended."""


@dataclass(frozen=True)
class State:
    """What supervisord says of a program."""

    name: str
    pid: int
    """0: not running."""
    is_running: bool
    """Alive, though perhaps not for long yet."""
    has_ended: bool
    """It ended by itself, and may be started again."""
    given_up: bool
    """It ended too often; it will not be started again."""


class Supervision:
    """supervisord with its configuration, socket and logs. Use it from the thread that made it."""

    def __init__(self, programs: Sequence[Program], run: Path, logs: Path) -> None:
        self.programs = {program.name: program for program in programs}
        self.run = run
        self.logs = logs
        # Not below `run`: a socket's path may have about a hundred characters only.
        self._socket = Path(tempfile.mkdtemp(prefix="vcllm-")) / "supervisor.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self._rpc: Any = None
        self._transport: Any = None
        self._spared: set[int] = set()
        """Children of this process that were there before."""

    def start(self) -> None:
        """Start supervisord; the programs wait for `launch`."""
        adopt_orphans()
        self._spared = {child.pid for child in psutil.Process().children()}
        self.logs.mkdir(parents=True, exist_ok=True)
        configuration = self.run / "supervisord.conf"
        configuration.unlink(missing_ok=True)
        with open(os.open(configuration, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w") as file:
            file.write(self._configuration())
        command = [*tethered("python"), "-m", "vcllm.launch.warden", str(self._slowest_s), str(configuration)]
        with (self.logs / "supervisord.out").open("ab") as out:
            # A group of its own, so that Ctrl-C reaches this process alone.
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, process_group=0)
        self._connect(time.monotonic() + 20)

    def launch(self, name: str) -> None:
        """Start a program; how it fares is seen in `states`."""
        self._call("startProcess", self._full_name(name), False)

    def halt(self, name: str) -> None:
        """Stop a program, or stop trying to start it."""
        with suppress(LaunchError):  # it has just ended by itself
            self._call("stopProcess", self._full_name(name))

    def states(self) -> dict[str, State]:
        """How each program fares; LaunchError when supervisord itself is gone."""
        return {info["name"]: _state(info) for info in self._call("getAllProcessInfo")}

    def stop(self) -> None:
        """End everything, in order, within `END_S` after the slowest; what does not end by then is killed by its id."""
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self._slowest_s + END_S)
            self._sweep()
        shutil.rmtree(self._socket.parent, ignore_errors=True)

    def processes(self) -> list[psutil.Process]:
        """The warden, supervisord and all that came of it, wherever it stands in the process tree by now."""
        return descendants(self._spared)

    def log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    @property
    def _slowest_s(self) -> float:
        return max(program.stop_s for program in self.programs.values())

    def _sweep(self) -> None:
        for _ in range(3):  # one that is being killed may still have started another
            left = self.processes()
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=2)

    def _connect(self, until: float) -> None:
        # Imported here: supervisor is part of a launch, not of every `vcllm` command.
        from supervisor.xmlrpc import SupervisorTransport

        while not self._socket.exists():
            if self._process is None or self._process.poll() is not None or time.monotonic() > until:
                raise LaunchError(f"supervisord did not start; {self.logs / 'supervisord.out'} says why.")
            time.sleep(0.05)
        self._transport = SupervisorTransport(None, None, f"unix://{self._socket}")
        self._rpc = ServerProxy("http://127.0.0.1", transport=self._transport).supervisor

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._rpc, method)(*arguments)
        except Fault as fault:
            raise LaunchError(f"supervisord refused {method} {arguments}: {fault.faultString}.") from fault
        except (OSError, HTTPException) as error:
            raise LaunchError(
                f"supervisord ended unexpectedly; {self.logs / 'supervisord.log'} may say why."
            ) from error

    def _full_name(self, name: str) -> str:
        return f"{_group(self.programs[name])}:{name}"

    def _configuration(self) -> str:
        sections = {
            "unix_http_server": {"file": str(self._socket), "chmod": "0700"},
            "supervisord": {
                "nodaemon": "true",
                "silent": "true",
                "logfile": str(self.logs / "supervisord.log"),
                "pidfile": str(self.run / "supervisord.pid"),
            },
            "rpcinterface:supervisor": {
                "supervisor.rpcinterface_factory": "supervisor.rpcinterface:make_main_rpcinterface"
            },
        }
        # The group with the higher number is stopped first.
        for group, priority in (("last", 1), ("services", 2)):
            names = [program.name for program in self.programs.values() if _group(program) == group]
            if names:
                sections[f"group:{group}"] = {"programs": ",".join(names), "priority": str(priority)}
        for program in self.programs.values():
            sections[f"program:{program.name}"] = self._section(program)
        return "\n\n".join(
            "\n".join([f"[{name}]", *(f"{key}={value.replace('%', '%%')}" for key, value in keys.items())])
            for name, keys in sections.items()
        )

    def _section(self, program: Program) -> dict[str, str]:
        return {
            "command": shlex.join([*tethered(program.command[0], by_other=True), *program.command[1:]]),
            "environment": ",".join(f"{key}={_quoted(value)}" for key, value in program.environment.items()),
            "autostart": "false",
            "autorestart": "true",
            "startsecs": "5",
            "startretries": "3",
            "stopwaitsecs": f"{3 if program.last else program.stop_s:.0f}",
            # The process itself is asked to stop and sees to its children; only the kill is for all of them.
            "killasgroup": "true",
            "redirect_stderr": "true",
            "stdout_logfile": str(self.log(program.name)),
            "stdout_logfile_maxbytes": "20MB",
            "stdout_logfile_backups": "1",
        }


def descendants(spared: Collection[int] = ()) -> list[psutil.Process]:
    """Every process this one started, directly or not, except the `spared` children and theirs."""
    own = [child for child in psutil.Process().children() if child.pid not in spared]
    found = list(own)
    for child in own:
        with suppress(psutil.NoSuchProcess):
            found.extend(child.children(recursive=True))
    return found


def _group(program: Program) -> str:
    return "last" if program.last else "services"


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _state(info: Mapping[str, Any]) -> State:
    name = str(info["statename"])
    return State(
        name=str(info["name"]),
        pid=int(info["pid"]),
        is_running=name in ("STARTING", "RUNNING"),
        has_ended=name in ("BACKOFF", "EXITED", "FATAL"),
        given_up=name == "FATAL",
    )
