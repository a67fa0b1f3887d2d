"""One pipeline on the micro recipe through a real fleet, with one kill in each of its phases, and what was true after.

What is to be killed stands in `chaos_plan`, what must be true in `chaos_invariants`. This module waits for the phases.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from redis import Redis

from benchmarks import chaos_invariants as invariants
from benchmarks.chaos_chat import Chatter, Reply
from benchmarks.chaos_invariants import Findings
from benchmarks.chaos_plan import Cell
from tests.e2e.micro import write_micro
from tests.fakes import commit_model, tiny_causal, tiny_tokenizer
from tests.processes import command_line
from vcllm.contracts.jobs import FINISHED, Event, JobRecord
from vcllm.launch.credentials import load_credentials
from vcllm.launch.fleet import Fleet
from vcllm.launch.local_key import local_key
from vcllm.launch.ports import free_port
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore

ENVIRONMENT = {"VCLLM_LEASE_S": "5", "TRAINER_REAP_EVERY_S": "1"}
"""A lost worker's jobs are found within seconds, as they would be within a minute otherwise."""
LOOK_EVERY_S = 0.05
RUN_S = 1500.0
"""A pipeline that takes longer is given up."""
BACK_S = 60.0
"""How long what was killed may take to be gone, and to be there again."""
NEAR_S = 10.0
"""Chats within so much time after a kill are told of."""
FIRST = "before"
"""Name of a version that is served from the start, so that there is chat before the pipeline has made one."""
STAGES = {"base": "pretrain", "sft": "sft", "critic": "critic", "attacker": "attacker", "training": "round-2"}
"""Phase to the stage whose first word of progress begins it."""
VERSIONS = {**{phase: phase for phase in STAGES}, "training": "r2"}
"""Phase to how the name of the version ends that is trained then."""


@dataclass
class Strike:
    """One kill and what was seen of it."""

    cell: Cell
    faults: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    process: psutil.Process | None = None
    """What was killed; None: it never came to that, or all that was to be seen of it has been."""
    begun: float = 0.0
    """By the monotonic clock."""
    when: float = 0.0
    """The same moment in Unix seconds."""
    is_gone: bool = False

    def deal(self, process: psutil.Process) -> None:
        self.process, self.begun, self.when = process, time.monotonic(), time.time()
        process.send_signal(signal.Signals[self.cell.signal])

    def look(self, fleet: Fleet) -> None:
        """Note when it ended and when another one was started."""
        process = self.process
        if process is None:
            return
        took_s = time.monotonic() - self.begun
        if not self.is_gone and has_ended(process):
            self.is_gone = True
            self.seen.append(f"gone after {took_s:.1f} s")
        if self.is_gone and self.cell.service == "training run":
            self.process = None  # its worker sees to another one: the job shows whether it did
        elif self.is_gone and fleet.pid(self.cell.service) not in (0, process.pid):
            self.process = None
            self.seen.append(f"started again after {took_s:.1f} s")
        elif took_s > BACK_S:
            self.process = None
            self.faults.append(f"it was not {'back' if self.is_gone else 'gone'} after {BACK_S:.0f} s")

    def note_chat(self, replies: Sequence[Reply]) -> None:
        """What chat came to around the kill: a kill that nobody talked through would prove nothing of chat."""
        near = [reply for reply in replies if self.when - 1 < reply.ended and reply.asked < self.when + NEAR_S]
        answered = sum(reply.is_answer for reply in near)
        if self.when:
            self.seen.append(f"of {len(near)} chats around it {answered} were answered")

    def row(self, findings: Findings) -> dict[str, Any]:
        """What is wrong after a run counts against every kill of it: nobody knows which one it was."""
        faults = [*self.faults, *([f"after the run, {findings}"] if findings else [])]
        return {
            "service": self.cell.service,
            "phase": self.cell.phase,
            "signal": self.cell.signal,
            "ok": not faults,
            "detail": "; ".join([*faults, *self.seen]),
        }


@dataclass
class Story:
    """What the job has told so far."""

    models: Path
    events: list[Event] = field(default_factory=list)
    trained: set[str] = field(default_factory=set)
    """Stages that have told progress."""
    stages: set[tuple[str, str]] = field(default_factory=set)
    """Stage and what was told of it."""
    rounds: set[tuple[int, str]] = field(default_factory=set)
    """Round and what was told of it."""

    def hear(self, event: Event) -> None:
        self.events.append(event)
        data = event.data
        if event.type == "progress":
            self.trained.add(data.get("stage", ""))
        elif event.type == "stage":
            self.stages.add((data["stage"], data["status"]))
        elif event.type == "round":
            self.rounds.add((data["round"], data["phase"]))

    def has_reached(self, phase: str) -> bool:
        """Whether that phase has begun; `idle` is not told by the job."""
        match phase:
            case "queued":
                return True
            case "playing":
                return (1, "attack") in self.rounds
            case "commit":
                return self._has_version("r3")
            case "report":
                return ("report", "started") in self.stages
            case "idle":
                return False
            case _:
                return STAGES[phase] in self.trained

    def is_past(self, phase: str) -> bool:
        """Whether a kill now would come too late to be one in that phase."""
        match phase:
            case "queued":
                return bool(self.stages)
            case "playing":
                return (1, "pair") in self.rounds
            case "commit":
                return ("round-3", "finished") in self.stages
            case "report":
                return ("report", "finished") in self.stages
            case "idle":
                return False
            case _:
                return self._has_version(VERSIONS[phase])

    def _has_version(self, ending: str) -> bool:
        return any(self.models.glob(f"*/*-{ending}/manifest.json"))


def has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def victim(fleet: Fleet, cell: Cell) -> psutil.Process | None:
    """None: it is not there at the moment."""
    try:
        return training_run(fleet, cell.phase) if cell.service == "training run" else service(fleet, cell.service)
    except psutil.NoSuchProcess:
        return None


def service(fleet: Fleet, name: str) -> psutil.Process | None:
    pid = fleet.pid(name)
    return psutil.Process(pid) if pid else None


def training_run(fleet: Fleet, phase: str) -> psutil.Process | None:
    """The subprocess that trains the phase's version."""
    worker = service(fleet, "trainer-training")
    for process in worker.children(recursive=True) if worker else []:
        command = command_line(process)
        if "vcllm.training" in command and any(part.endswith(f"-{VERSIONS[phase]}") for part in command):
            return process
    return None


def run(cells: Sequence[Cell], folder: Path, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """A fleet in `folder` from its start to its end; a row for each cell."""
    write_micro(folder)
    with _environment({**ENVIRONMENT, "VCLLM_CHARTERS": str(folder / "charters")}), ExitStack() as held:
        settings = Settings(home=folder / "var", recipes=folder / "recipes", data=folder / "data")
        fleet = held.enter_context(Fleet(settings, port=free_port(), say=say))
        fleet.wait_until_up()
        fleet.check()
        redis = held.enter_context(open_redis(fleet.redis_url, patience=40))
        serve_first(ModelStore(fleet.home / "models"), redis)
        key = local_key(fleet.home, redis, load_credentials(settings).pepper)
        strikes, findings = Pipeline(fleet, redis, key, say).run(cells)
    return [strike.row(findings) for strike in strikes]


def serve_first(store: ModelStore, redis: Redis) -> None:
    """A model with random weights: it answers, though nothing that makes sense."""
    tokenizer = tiny_tokenizer()
    commit_model(store, "actor", FIRST, tiny_causal(tokenizer), tokenizer)
    AliasStore(redis).promote("actor", FIRST)


class Pipeline:
    """The job of one run, from its creation to the last look at what it left."""

    def __init__(self, fleet: Fleet, redis: Redis, key: str, say: Callable[[str], None]) -> None:
        self.fleet, self.redis, self.key, self.say = fleet, redis, key, say
        self.jobs, self.log = JobStore(redis), EventLog(redis)
        self.story = Story(fleet.home / "models")
        self.strikes: list[Strike] = []

    def run(self, cells: Sequence[Cell]) -> tuple[list[Strike], Findings]:
        waiting, findings = {cell.phase: cell for cell in cells}, Findings()
        with Chatter(self.fleet.url, self.key) as chatter:
            findings.look(self._answers, chatter)
            reply = self._ask("POST", "/v1/jobs", {"recipe": "micro"})
            self._follow(reply["id"], waiting, chatter)
            if idle := waiting.pop("idle", None):
                self._deal(idle, chatter)
            self._watch_to_the_end()
            findings.look(self._answers, chatter)
        for strike in self.strikes:
            strike.note_chat(chatter.replies)
        self.strikes += [Strike(cell, [f"the job never got to {phase}"]) for phase, cell in waiting.items()]
        self._look(findings, self.jobs.get(reply["id"]), chatter.replies)
        return self.strikes, findings

    def _follow(self, job_id: str, waiting: dict[str, Cell], chatter: Chatter) -> None:
        """Kill as the phases come, until the job has finished; what was dealt with is taken from `waiting`."""
        until = time.monotonic() + RUN_S
        while time.monotonic() < until and self.jobs.get(job_id).state not in FINISHED:
            self._hear(job_id)
            for phase in [phase for phase in waiting if self.story.has_reached(phase)]:
                if self._deal(waiting[phase], chatter):
                    del waiting[phase]
            self._watch()
            time.sleep(LOOK_EVERY_S)

    def _deal(self, cell: Cell, chatter: Chatter) -> bool:
        """False: there is nothing to kill at the moment, as when it is on its way back from another kill."""
        if self.story.is_past(cell.phase):
            self.strikes.append(Strike(cell, ["the phase was over before it could be killed"]))
            return True
        process = victim(self.fleet, cell)
        if process is None:
            return False
        if cell.service == "gateway":
            chatter.gateway_killed_at.append(time.time())
        strike = Strike(cell)
        strike.deal(process)
        self.strikes.append(strike)
        self.say(f"{cell}: process {process.pid}")
        return True

    def _watch(self) -> None:
        self.fleet.check()
        for strike in self.strikes:
            strike.look(self.fleet)

    def _watch_to_the_end(self) -> None:
        """Until all that was killed is there again, or was waited for long enough."""
        while any(strike.process for strike in self.strikes):
            self._watch()
            time.sleep(LOOK_EVERY_S)

    def _hear(self, job_id: str) -> None:
        events = self.story.events
        while new := self.log.read(job_id, events[-1].id if events else "0"):
            for event in new:
                self.story.hear(event)

    def _answers(self, chatter: Chatter) -> list[str]:
        """A chat that is begun now is answered within a minute, whatever was killed last."""
        now, until = time.time(), time.monotonic() + BACK_S
        while time.monotonic() < until:
            if any(reply.asked > now and reply.is_answer for reply in list(chatter.replies)):
                return []
            self.fleet.check()
            time.sleep(LOOK_EVERY_S)
        return [f"no chat was answered for {BACK_S:.0f} s"]

    def _look(self, findings: Findings, record: JobRecord, replies: list[Reply]) -> None:
        store, redis = ModelStore(self.fleet.home / "models"), self.redis
        findings.look(invariants.job_succeeded, record)
        lineage = record.result.get("lineage")
        if lineage is not None:
            self._hear(record.id)
            books = invariants.read_books(redis, store, lineage)
            findings.look(invariants.no_approved_pair_lost, books)
            findings.look(invariants.no_pair_used_twice, books)
            findings.look(invariants.no_unapproved_pair_used, books)
            findings.look(invariants.events_whole, self.story.events)
        findings.look(invariants.aliases_on_whole_versions, redis, store)
        findings.look(invariants.audit_chain_whole, redis)
        findings.look(invariants.replies_name_versions_that_existed, replies, invariants.promotions(redis))
        findings.look(invariants.chat_failed_cleanly, replies)
        answered = sum(reply.is_answer for reply in replies)
        self.say(f"{len(replies)} chats, {answered} answered; {findings or 'every invariant holds'}")

    def _ask(self, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"authorization": f"Bearer {self.key}"}
        reply = httpx.request(method, self.fleet.url + path, json=body, headers=headers, timeout=30, trust_env=False)
        reply.raise_for_status()
        return dict(reply.json())


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """What the fleet's processes inherit."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
