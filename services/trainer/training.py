"""The supervisor of one training run: a subprocess in its own group, watched, relayed, committed.

The run itself (`python -m vcllm.training`) knows no Redis. The supervisor freezes the approved pairs into its
dataset, passes its progress on, and makes the result a version only while it holds the job's newest token.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from redis import Redis

from services.trainer.datasets import Datasets, lines, write_stream
from services.trainer.hold import Hold
from services.trainer.process import die_with_parent
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import StageOrder
from vcllm.data.shapes import other_charter, preference_row
from vcllm.settings import Settings
from vcllm.stores.events import EventLog
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import ModelStore, hash_files, write_atomic
from vcllm.stores.pairs import PairStream

CLAIMED = "claimed.json"
MAX_RUNS = 3
"""How often a run that is killed (by the kernel, for memory, or by hand) is started again within one job."""


class TrainingFailed(ValueError):
    """The subprocess ended with an error; carries its last words."""


def run_stage(record: JobRecord, hold: Hold, redis: Redis, settings: Settings) -> dict[str, Any]:
    """Train and commit the version that the record orders; a version already committed is only acknowledged."""
    order = StageOrder.model_validate(record.request)
    store = ModelStore(settings.models)
    folder = settings.jobs / order.role / order.version
    # 1  freeze what it is trained on
    claimed = prepare(order, folder, PairStream(redis, order.lineage), Datasets(settings.home / "datasets"))
    # 2  train
    if not store.has(order.role, order.version):
        relay = Relay(record, order, redis, settings.lease_s)
        supervise(folder, order, settings, hold, relay)
        # 3  commit, only as the newest holder
        hold.confirm()
        commit(folder, order, store, record, claimed)
    # 4  the manifest is safe: the pairs are used
    PairStream(redis, order.lineage).acknowledge(claimed, order.version)
    clean_up(folder)
    return {"version": order.version, "role": order.role, "pairs": len(claimed)}


def prepare(order: StageOrder, folder: Path, stream: PairStream, datasets: Datasets) -> dict[str, str]:
    """Write order and dataset; the pairs in it by stream entry id.

    The folder belongs to the version, not to the job: a later job with the same order carries on with what was frozen
    and with its checkpoints. Another order (the recipe was changed) starts anew.
    """
    claimed_file, wanted = folder / CLAIMED, order.model_dump_json(indent=1)
    if claimed_file.is_file() and (folder / "order.json").read_text() == wanted:
        return dict(json.loads(claimed_file.read_text()))
    shutil.rmtree(folder, ignore_errors=True)
    pairs: dict[str, Pair] = stream.claim(order.version) if order.claims_pairs else {}
    earlier = {pair.id: pair for pair in stream.entries().values()} if order.replayed else {}
    used = [*pairs.values(), *(earlier[name] for name in order.replayed)]
    refuse_other_charters(used, order)
    content = chain(lines(map(preference_row, used)), datasets.chunks(order.dataset))
    claimed = {entry: pair.id for entry, pair in pairs.items()}
    write_stream(folder, content, lambda _: folder / "dataset.jsonl")
    write_atomic(folder / "order.json", wanted.encode())
    write_atomic(claimed_file, json.dumps(claimed).encode())
    return claimed


def refuse_other_charters(pairs: list[Pair], order: StageOrder) -> None:
    """What was consistent under one charter may be the opposite under another: BadRequest names both."""
    others = [pair.provenance.charter for pair in pairs if pair.provenance.charter != order.charter]
    if others:
        raise BadRequest(
            f"{len(others)} pairs of lineage '{order.lineage}' were {other_charter(others[0], order.charter)} "
            "by starting a new lineage."
        )


def supervise(folder: Path, order: StageOrder, settings: Settings, hold: Hold, relay: Relay) -> None:
    """Run the subprocess to its end; one that was killed from outside carries on from its last checkpoint."""
    for attempt in range(1, MAX_RUNS + 1):
        code = run_once(folder, order, settings, hold, relay)
        if code == 0:
            return
        if code != -signal.SIGKILL or attempt == MAX_RUNS:
            raise TrainingFailed(_last_words(folder / "log.txt", code))
        relay.say(f"The training process was killed; run {attempt + 1} of {MAX_RUNS} carries on.")


def run_once(folder: Path, order: StageOrder, settings: Settings, hold: Hold, relay: Relay) -> int:
    """The subprocess's exit code; a cancelled or lost job takes its whole process group with it."""
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "vcllm.training", str(folder), str(settings.models)],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env=environment(order),
        )
        lines: Queue[str] = Queue()
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        try:
            while process.poll() is None or reader.is_alive() or not lines.empty():
                hold.go_on()
                try:
                    relay(json.loads(lines.get(timeout=0.2)))
                except Empty:
                    continue
        finally:
            kill_group(process)
            reader.join(timeout=5)
    return process.returncode


def environment(order: StageOrder) -> dict[str, str]:
    """Threads are set before the libraries start; freed memory is kept, a step needs it again at once.

    A run that has the machine to itself lets waiting threads spin: a third faster than putting them to sleep.
    """
    threads = {"OMP_NUM_THREADS": str(order.threads)} if order.threads else {"OMP_WAIT_POLICY": "ACTIVE"}
    memory = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "4000000000"}
    return {**os.environ, **memory, **threads}


def commit(folder: Path, order: StageOrder, store: ModelStore, record: JobRecord, claimed: dict[str, str]) -> None:
    """Make `out/` a version with its manifest."""
    result = json.loads((folder / "result.json").read_text())
    out = folder / "out"
    manifest = Manifest(
        role=order.role,
        name=order.version,
        lineage=order.lineage,
        stage=order.stage.stage,
        round=order.round,
        parent=order.parent,
        base=result["base"],
        format=result["format"],
        files=hash_files(out),
        recipe=order.stage.model_dump(mode="json"),
        recipe_hash=order.recipe_hash,
        charter=order.charter,
        dataset=hashlib.sha256((folder / "dataset.jsonl").read_bytes()).hexdigest(),
        pairs=list(claimed.values()),
        replayed=order.replayed,
        metrics=result["metrics"],
        probes=result["probes"],
        token=record.token,
        job=record.id,
        created=time.time(),
    )
    target = store.path(order.role, order.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    store.commit(out, manifest)


def clean_up(folder: Path) -> None:
    """Keep the order, the result and the log; the weights are in the store."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    shutil.rmtree(folder / "out", ignore_errors=True)


class Relay:
    """Passes progress on to the job's events, its record, and the pipeline it belongs to."""

    def __init__(self, record: JobRecord, order: StageOrder, redis: Redis, lease_s: float) -> None:
        self.record = record
        self.stage = stage_label(order)
        self.events = EventLog(redis)
        self.jobs = JobStore(redis, lease_s)

    def __call__(self, progress: dict[str, Any]) -> None:
        data = {"stage": self.stage, **progress}
        self.jobs.update(self.record.id, holder=self.record.token, progress=data)
        self._tell("progress", data)

    def say(self, message: str) -> None:
        self._tell("log", {"stage": self.stage, "message": message})

    def _tell(self, type_: str, data: dict[str, Any]) -> None:
        for job_id in (self.record.id, self.record.parent):
            if job_id is not None:
                self.events.append(job_id, type_, **data)


def stage_label(order: StageOrder) -> str:
    """What a person calls the stage: `sft`, `round-2`, `round-2 attacker`."""
    if order.round == 0:
        return order.version.rsplit("-", 1)[-1] if order.stage.stage == "sft" else order.stage.stage
    return f"round-{order.round}" + (" attacker" if order.role == "attacker" else "")


def kill_group(process: subprocess.Popen[str]) -> None:
    """End the subprocess and whatever it started; nothing to do when it has ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _read(process: subprocess.Popen[str], lines: Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            lines.put(line)


def _last_words(log: Path, code: int) -> str:
    tail = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
    if code == -signal.SIGKILL:
        return f"The training process was killed {MAX_RUNS} times (out of memory?); resuming it goes on."
    return f"Training ended with exit code {code}: {tail[0] if tail else 'no message'} (log: {log})"
