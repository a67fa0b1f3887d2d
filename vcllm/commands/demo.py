"""`vcllm demo`: the whole method on one machine, from nothing to a served model, resumed where it stopped."""

from __future__ import annotations

import json
import queue
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from vcllm.commands.api import Api
from vcllm.commands.board import Board
from vcllm.commands.display import display_for, figures_table, open_console
from vcllm.commands.errors import CommandError
from vcllm.commands.evaluation import read_report, report_file, report_rows
from vcllm.commands.jobs import check_outcome
from vcllm.commands.plan import OwnJob, is_promoted, make_plan
from vcllm.commands.session import interruptible
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.jobs import Event, JobState
from vcllm.launch.credentials import DEMO_KEY, load_credentials
from vcllm.launch.local_key import local_key
from vcllm.launch.ports import free_port, is_free
from vcllm.settings import Settings

if TYPE_CHECKING:
    from vcllm.launch.fleet import Fleet

DEFAULT_PORT = 8080
CHAT_READY_S = 60.0


def demo(
    recipe: Annotated[str, typer.Option(help="What to run.")] = "starter",
    exit_after: Annotated[bool, typer.Option("--exit", help="Leave after the report and one chat reply.")] = False,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Where the gateway listens; default: 8080 or a free one."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the recipe's own.")] = None,
) -> None:
    """Train, align, measure and serve a small bilingual model. What is already done is not done again."""
    # Imported here: the other commands also run where the launcher is not installed.
    from vcllm.launch.fleet import Fleet

    console = open_console()
    settings = Settings()
    plan = make_plan(settings, recipe, seed)
    console.print("Starting the services.")
    hint = "The next run carries on from what was done."
    with (
        interruptible(console, hint) as session,
        Fleet(settings, port=_choose_port(port, console), say=console.print) as fleet,
    ):
        with fleet.redis() as redis:
            key = local_key(settings.home, redis, load_credentials(settings).pepper)
        with Api(fleet.url, key) as api:
            job = OwnJob(api, settings.home, plan).find_or_create()
            if job["state"] == JobState.SUCCEEDED:
                console.print(f"{plan.recipe.name} is already done ({job['id']}).", highlight=False)
            else:
                fleet.wait_until_up()
                console.print(f"All services are up. {job['id']} runs the whole pipeline:", highlight=False)
                _follow(api, fleet, job["id"], console)
            _summarise(settings.home, console)
            _check_promoted(api)
            _wait_until_chat(api, fleet)
            _say_how_to_chat(settings.home, fleet.url, plan.questions, console)
            if exit_after:
                _chat_once(api, plan.questions, console)
                return
        fleet.wait_until_up()
        session.serving = True
        console.print("The services run until Ctrl-C.")
        fleet.watch()


def _choose_port(port: int | None, console: Console) -> int:
    if port is not None:
        return port
    if is_free(DEFAULT_PORT):
        return DEFAULT_PORT
    other = free_port()
    console.print(f"Port {DEFAULT_PORT} is taken; the gateway listens on {other} instead.", highlight=False)
    return other


def _follow(api: Api, fleet: Fleet, job_id: str, console: Console) -> None:
    """Show the job's progress to its end, and watch the services meanwhile."""
    board = Board()
    with display_for(console) as display:
        for event in _with_pulse(api.events(job_id)):
            if event is None:
                fleet.check()
                continue
            board.take(event)
            display.show(board)
    check_outcome(board, job_id)


def _with_pulse(events: Iterator[Event], every_s: float = 0.5) -> Iterator[Event | None]:
    """The events as they come, None in the silences; read in a thread, so that Ctrl-C is heard at once."""
    box: queue.Queue[Event | Exception | None] = queue.Queue()

    def read() -> None:
        try:
            for event in events:
                box.put(event)
            box.put(None)
        except Exception as error:
            box.put(error)

    threading.Thread(target=read, name="events", daemon=True).start()
    while True:
        try:
            found = box.get(timeout=every_s)
        except queue.Empty:
            yield None
            continue
        if found is None:
            return
        if isinstance(found, Exception):
            raise found
        yield found


def _summarise(home: Path, console: Console) -> None:
    file = report_file(home)
    report = read_report(file)
    console.print(figures_table(report_rows(report), console.width))
    if report.get("seconds"):
        console.print(f"The pipeline took {report['seconds']:.0f} s.", highlight=False)
    console.print(f"Report: {file.with_name('index.html').resolve()}", highlight=False, soft_wrap=True)


def _check_promoted(api: Api) -> None:
    if not is_promoted(api):
        raise CommandError("The gate let no version through, so there is none to chat with; the report says why.")


def _wait_until_chat(api: Api, fleet: Fleet) -> None:
    """The servers load the promoted version by themselves; give them the time."""
    until = time.monotonic() + CHAT_READY_S
    while True:
        try:
            _ask(api, "ok", max_tokens=1)
            return
        except CommandError:
            if time.monotonic() > until:
                raise
            fleet.check()
            time.sleep(0.5)


def _say_how_to_chat(home: Path, url: str, questions: tuple[str, str], console: Console) -> None:
    console.print("\nAsk it, in Chinese or in English:", highlight=False)
    for question in questions:
        console.print(f"\n{curl_line(home, url, question)}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"\nOr talk to it in another terminal: {_own_name()} chat", highlight=False)


def _own_name() -> str:
    """This command as it was called, such as `.venv/bin/vcllm`."""
    return sys.argv[0] if Path(sys.argv[0]).name == "vcllm" else "vcllm"


def curl_line(home: Path, url: str, question: str) -> str:
    """A line to paste into a shell; the key is read from its file, so that it stays out of the history."""
    body = {"model": ALIGNED_MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0.7}
    key = shlex.quote(str((home / "secrets" / DEMO_KEY).resolve()))
    return " ".join(
        [
            f"curl -s {url}/v1/chat/completions",
            f'-H "Authorization: Bearer $(cat {key})"',
            "-H 'Content-Type: application/json'",
            f"-d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        ]
    )


def _chat_once(api: Api, questions: tuple[str, str], console: Console) -> None:
    for question in questions:
        reply = _ask(api, question)
        console.print(f"\nQ: {question}\nA: {reply['choices'][0]['message']['content']}", markup=False, highlight=False)
        console.print(f"   ({reply['model']})", highlight=False, style="dim")


def _ask(api: Api, question: str, **sampling: Any) -> dict[str, Any]:
    body = {"model": ALIGNED_MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0.7}
    return dict(api.post("/v1/chat/completions", {**body, **sampling}))
