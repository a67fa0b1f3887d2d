"""A fleet whose services are tiny: real processes, real Redis, real supervision, no models.

`python tests/fake_fleet.py launch PORT [SERVICE...]` runs it as `vcllm up` would, with extra services by
name: `dying` ends at once, `deaf` ignores SIGTERM and has a child in a session of its own.
"""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PYTHON_FILE = str(Path(__file__).resolve())


def serve(prefix: str) -> None:
    """Answers 200 to everything, with its environment and whether the fleet's addresses were known before."""
    addresses = Path(os.environ["VCLLM_HOME"]) / "run" / "fleet.json"
    known = str(addresses.exists())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({**os.environ, "addresses_known": known}).encode())

    address = (os.environ[f"{prefix}_HOST"], int(os.environ[f"{prefix}_PORT"]))
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()


def work() -> None:
    print("worker ready.", flush=True)
    while True:
        time.sleep(60)


def be_deaf() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, PYTHON_FILE, "work"], start_new_session=True)
    work()


def die() -> None:
    print("Reading my settings.", flush=True)
    sys.exit("There is no such model as 'nowhere'.")


def launch(port: int, extra: list[str]) -> None:
    from rich.console import Console

    from vcllm.commands.session import interruptible
    from vcllm.launch.errors import LaunchError
    from vcllm.launch.fleet import Fleet
    from vcllm.launch.services import Service
    from vcllm.settings import Settings

    me = ("python", PYTHON_FILE)
    services = (
        Service("actor", (*me, "serve", "ACTOR"), "ACTOR", 8201, "/health/live", scalable=True),
        Service("trainer-training", (*me, "work"), up_line=" ready."),
        *(Service(name, (*me, name), up_line=" ready.") for name in extra),
        Service("gateway", (*me, "serve", "GATEWAY"), "GATEWAY", 8080, "/health/live", first=True),
    )
    console = Console(soft_wrap=True)
    try:
        with interruptible(console, "Half done.") as session:
            print("starting", flush=True)
            with Fleet(Settings(), services=services, scale={"actor": 2}, port=port, say=console.print) as fleet:
                fleet.wait_until_up()
                print("up", flush=True)
                session.serving = True
                fleet.watch()
    except LaunchError as error:
        sys.exit(f"error: {error}")
    except RuntimeError as left:  # typer.Exit, as the command would leave
        sys.exit(getattr(left, "exit_code", 1))


def main(words: list[str]) -> None:
    match words:
        case ["serve", prefix]:
            serve(prefix)
        case ["work"]:
            work()
        case ["deaf"]:
            be_deaf()
        case ["dying"]:
            die()
        case ["launch", port, *extra]:
            launch(int(port), extra)


if __name__ == "__main__":
    main(sys.argv[1:])
