"""What the demo is to end with, and its one job among all jobs: found again, resumed, or queued."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vcllm.charter import LoadedCharter
from vcllm.commands.api import Api
from vcllm.commands.charter import named_charter
from vcllm.commands.errors import CommandError, Refused
from vcllm.commands.evaluation import read_report, report_file
from vcllm.contracts.base import digest
from vcllm.contracts.charter import Split, TacticUse
from vcllm.contracts.chat import ALIGNED_MODEL
from vcllm.contracts.jobs import FINISHED, JobState
from vcllm.contracts.recipes import Recipe
from vcllm.recipes import load_recipe, used_part
from vcllm.settings import Settings
from vcllm.stores.models import write_atomic

RESUMABLE = (JobState.FAILED, JobState.PAUSED)
NOT_FOUND = 404


@dataclass(frozen=True)
class Plan:
    """What the demo is to end with."""

    recipe: Recipe
    seed: int | None
    """None: the recipe's own."""
    digest: str
    """Names the content: another recipe, seed or charter is another plan."""
    questions: tuple[str, str]
    """One to try in Chinese and one in English."""

    @property
    def final_seed(self) -> int:
        return self.recipe.seed if self.seed is None else self.seed


def make_plan(settings: Settings, name: str, seed: int | None) -> Plan:
    """Read what will run; a broken recipe or charter is told before anything starts."""
    recipe = load_recipe(settings.recipes, name)
    charter = named_charter(settings, recipe.charter)
    content = {"recipe": recipe.model_dump(mode="json"), "seed": seed, "charter": charter.hash}
    return Plan(recipe, seed, digest(content), example_questions(used_part(recipe, charter)))


def example_questions(charter: LoadedCharter) -> tuple[str, str]:
    """The first training card's first claim, pressed by the first seed tactic; in Chinese and in English."""
    cards, tactics = charter.cards_of(Split.TRAIN), charter.tactics_of(TacticUse.SEED)
    claim, attack = cards[0].claims[0], tactics[0].attack
    return attack.zh[0].replace("{claim}", claim.zh), attack.en[0].replace("{claim}", claim.en)


class OwnJob:
    """The demo's job among all jobs, remembered between runs in `demo.json`.

    Its Idempotency-Key is made of the plan and a count, so a run that was interrupted at any moment finds its
    job again instead of queuing a second one.
    """

    def __init__(self, api: Api, home: Path, plan: Plan) -> None:
        self.api = api
        self.home = home
        self.plan = plan
        self.file = home / "demo.json"

    def find_or_create(self) -> dict[str, Any]:
        """The job to follow, or one that has succeeded and whose report and model are the present ones."""
        noted = self._noted()
        if noted.get("plan") != self.plan.digest:
            self._cancel(noted.get("job"))
            noted = {}
        count, job = int(noted.get("count", 0)), self._get(noted.get("job"))
        for _ in range(3):
            job = job or self._queue(count)
            if job["state"] in RESUMABLE:
                return dict(self.api.post(f"/v1/jobs/{job['id']}/resume"))
            if job["state"] not in FINISHED or self._still_stands(job):
                return job
            # Cancelled, or its report or model is not the present one: run again, and reuse what is there.
            count, job = count + 1, None
        raise CommandError("The demo's job cannot be queued; `vcllm jobs list` shows what is there.")

    def _get(self, job_id: str | None) -> dict[str, Any] | None:
        try:
            return None if job_id is None else dict(self.api.get(f"/v1/jobs/{job_id}"))
        except Refused as refused:
            if refused.status == NOT_FOUND:
                return None  # Redis was emptied
            raise

    def _cancel(self, job_id: str | None) -> None:
        """The job of an earlier plan would go on beside ours, and its model could replace ours."""
        job = self._get(job_id)
        if job is not None and job["state"] not in FINISHED:
            self.api.post(f"/v1/jobs/{job['id']}/cancel")

    def _queue(self, count: int) -> dict[str, Any]:
        note = {"plan": self.plan.digest, "count": count}
        self._note(note)
        body = {"recipe": self.plan.recipe.name, "seed": self.plan.seed}
        headers = {"Idempotency-Key": f"demo-{self.plan.digest[:32]}-{count}"}
        job = dict(self.api.post("/v1/jobs", body, headers))
        self._note({**note, "job": job["id"]})
        return job

    def _still_stands(self, job: dict[str, Any]) -> bool:
        if job["state"] != JobState.SUCCEEDED:
            return False
        try:
            report = read_report(report_file(self.home))
        except CommandError:
            return False
        made_by = (report.get("recipe"), report.get("seed"))
        return made_by == (self.plan.recipe.name, self.plan.final_seed) and is_promoted(self.api)

    def _noted(self) -> dict[str, Any]:
        """What the last run noted; empty when there was none, or the note is damaged."""
        try:
            return dict(json.loads(self.file.read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return {}

    def _note(self, note: dict[str, Any]) -> None:
        write_atomic(self.file, json.dumps(note).encode())


def is_promoted(api: Api) -> bool:
    """Whether any version passed the gate."""
    return ALIGNED_MODEL in [card["id"] for card in api.get("/v1/models")["data"]]
