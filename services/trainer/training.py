"""A training job: pairs frozen into a dataset, a training run supervised, a version committed, pairs acknowledged.

The run itself knows no Redis. Its result becomes a version only while this worker holds the job's newest token.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

from redis import Redis

from services.trainer.datasets import Datasets, lines, write_stream
from services.trainer.hold import Hold
from services.trainer.launching import command, environment
from services.trainer.relay import Relay
from services.trainer.runs import Run, supervise
from services.trainer.settings import TrainerSettings
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.manifests import Manifest
from vcllm.contracts.pairs import Pair
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import PreferenceStage, StageOrder
from vcllm.contracts.runs import CHECKPOINTS, DATASET, OUT, RESULT, TOKEN_VARIABLE
from vcllm.contracts.traces import trace_of
from vcllm.data.shapes import other_charter, preference_row
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore, hash_files, sha256_file, write_atomic
from vcllm.stores.pairs import PairStream
from vcllm.web.tracing import note, span

CLAIMED = "claimed.json"


def run_stage(
    record: JobRecord, order: StageOrder, hold: Hold, redis: Redis, settings: Settings, trainer: TrainerSettings
) -> dict[str, Any]:
    """Train and commit the version that is ordered; a version already committed is only acknowledged."""
    note({"vc.lineage": order.lineage, "vc.version": order.version, "vc.role": order.role})
    store, stream = ModelStore(settings.models), PairStream(redis, order.lineage)
    folder = settings.jobs / order.role / order.version
    # 1  freeze what it is trained on
    hold.confirm()
    with span("freeze"):
        claimed = prepare(order, folder, stream, Datasets(settings.home / "datasets"))
    # 2  train
    if not store.has(order.role, order.version):
        # By its token the run knows whether the folder is still its own.
        around = {**environment(order), TOKEN_VARIABLE: str(record.token)}
        run = Run(folder, command(order, folder, settings), around, trainer.grace_s)
        with span(f"train {order.stage.stage}"):
            supervise(run, hold, Relay(record, order, redis, settings.lease_s))
        # 3  commit, only as the newest holder
        with span("commit"):
            commit(folder, order, store, record, claimed, hold.confirm)
    # 4  the manifest is safe: the pairs are used, whatever is asked meanwhile
    hold.check()
    stream.acknowledge(claimed, order.version)
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
    if isinstance(order.stage, PreferenceStage) and not order.stage.use_rejected:
        used = [pair.model_copy(update={"rejected": None, "margin": None}) for pair in used]
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


def commit(
    folder: Path,
    order: StageOrder,
    store: ModelStore,
    record: JobRecord,
    claimed: dict[str, str],
    confirm: Callable[[], None],
) -> None:
    """Make `out/` a version with its manifest."""
    result = json.loads((folder / RESULT).read_text())
    out = folder / OUT
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
        dataset=sha256_file(folder / DATASET),
        pairs=list(claimed.values()),
        replayed=order.replayed,
        metrics=result["metrics"],
        probes=result["probes"],
        token=record.token,
        job=record.id,
        trace=None if record.traceparent is None else trace_of(record.traceparent),
        created=time.time(),
    )
    target = store.path(order.role, order.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    store.commit(out, manifest, confirm)


def clean_up(folder: Path) -> None:
    """Keep the order, the result and the log; the weights are in the store."""
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    shutil.rmtree(folder / OUT, ignore_errors=True)
