"""A fine-tuning job: an uploaded file taken in as the operator's data are, then one training run like any other.

Everything but the rows was settled when the job was made. The snapshot of the rows is noted beside the snapshots, so a
job that is resumed trains on the very same ones, also when the file has been deleted meanwhile.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from redis import Redis

from services.trainer.datasets import Datasets, OperatorData
from services.trainer.hold import Hold
from services.trainer.settings import TrainerSettings
from services.trainer.training import run_stage
from vcllm.charter import CharterError, load_charter
from vcllm.charter.load import charter_folder
from vcllm.contracts.fine_tuning import FineTune
from vcllm.contracts.jobs import JobRecord
from vcllm.contracts.problems import BadRequest, NotFound
from vcllm.contracts.recipes import DataSource, PreferenceStage, SftStage
from vcllm.data.contamination import Contamination
from vcllm.evaluation.bench.load import held_out_questions
from vcllm.recipes import load_recipe, used_part
from vcllm.settings import Settings
from vcllm.starter.suite import items_of_run
from vcllm.stores.events import EventLog
from vcllm.stores.files import CONTENT, FileStore
from vcllm.stores.jobs import JobStore
from vcllm.stores.models import write_atomic


def fine_tune(
    record: JobRecord, hold: Hold, redis: Redis, settings: Settings, trainer: TrainerSettings
) -> dict[str, Any]:
    """Take the file in, train, commit; BadRequest says all that keeps the file from being trained on."""
    request = FineTune.model_validate(record.request)
    taken = taken_in(request, record, hold, redis, settings)
    JobStore(redis, settings.lease_s).update(record.id, holder=record.token, progress={"dataset": taken["dataset"]})
    # Beside the lineage's own runs there may be others on this machine, as in a pipeline.
    threads = max(1, (os.cpu_count() or 1) // 2)
    order = request.order.model_copy(update={"dataset": taken["dataset"], "threads": threads})
    return run_stage(record, order, hold, redis, settings, trainer)


def taken_in(request: FineTune, record: JobRecord, hold: Hold, redis: Redis, settings: Settings) -> dict[str, Any]:
    """The snapshot of the file and its counts; what was taken in once is found again."""
    datasets = Datasets(settings.home / "datasets")
    note = datasets.folder / f"{record.id}.json"
    with suppress(FileNotFoundError):
        kept: dict[str, Any] = json.loads(note.read_text())
        if datasets.path(kept["dataset"]).is_file():
            return kept
    try:
        FileStore(settings.home / "files").get(request.file)
    except NotFound as error:
        raise NotFound(f"Training file '{request.file}' was deleted. Upload it again and make a new job.") from error
    stage = request.order.stage
    assert isinstance(stage, SftStage | PreferenceStage), "no other stage is made from a request"
    data = OperatorData(
        folder=settings.home / "files",
        datasets=datasets,
        charter=request.order.charter,
        evaluated=Contamination(evaluated(request.order.recipe, settings)),
        policy=request.contamination,
        seed=request.order.seed,
        go_on=hold.go_on,
    )
    source = DataSource(file=f"{request.file}/{CONTENT}")
    dataset, sets = data.freeze([source], stage.stage, stage.optim.max_length)
    hold.confirm()
    kept = {"dataset": dataset, "sets": [{**one, "set": request.file} for one in sets]}
    write_atomic(note, json.dumps(kept).encode())
    EventLog(redis).append(record.id, "data", stage=stage.stage, sets=kept["sets"])
    return kept


def evaluated(recipe: str, settings: Settings) -> Iterator[tuple[str, str]]:
    """What no training file may quote: VC-Bench, and the questions of the recipe's own evaluation while it is here."""
    yield from held_out_questions()
    with suppress(BadRequest, CharterError):
        known = load_recipe(settings.recipes, recipe)
        charter = used_part(known, load_charter(charter_folder(known.charter, settings.charters)))
        for items in items_of_run(charter, known.evaluation, known.world):
            yield from ((item.id, item.query) for item in items)
