"""What tests of the command line of `vcllm eval` share: servers to ask, a judge of everything, what a command said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI, Request, Response
from pydantic import SecretStr
from rich.console import Console

from tests import bench_world as world
from tests.judge_scripts import chat_reply
from vcllm.charter import load_charter
from vcllm.commands.eval_models import Gateway
from vcllm.commands.eval_stages import Surroundings
from vcllm.evaluation.endpoint import Endpoint
from vcllm.evaluation.judging.llm import ModelJudge
from vcllm.evaluation.judging.stage import cases_of, judge_answers, judge_pairs, mirror_cases
from vcllm.evaluation.runs import RunFolder

CHARTER = load_charter()
ROWS = [row for row in world.rows(1) if row.subdomain == "soc.class"]
Run = Callable[..., Any]


def sentence(result: Any) -> str:
    """What a failed command says; there is one line of it."""
    assert result.exit_code == 1, result.output
    [line] = [line for line in result.output.splitlines() if line.startswith("error: ")]
    assert "Something unexpected" not in line
    return line.removeprefix("error: ")


async def judge_all(folder: RunFolder, name: str = "scripted", revision: str = "", pairs: bool = True) -> None:
    async with world.judge_endpoint() as server:
        judge, cases = ModelJudge(server, CHARTER, name, revision), cases_of(folder.rows(), folder.answers())
        await judge_answers(cases, judge, folder.verdicts_file)
        if pairs:
            await judge_pairs(mirror_cases(cases), judge, folder.pairs_file)


def gateway(*chain: str, current: str | None = None, **cards: str | None) -> Gateway:
    """Serves a chain of versions, each made from the one before it, and whatever else is told by name and parent."""
    parents = dict(zip(chain, [None, *(f"actor/{name}" for name in chain)], strict=False)) | cards
    known = {name: {"id": name, "parent": parent} for name, parent in parents.items()}
    if promoted := current or (chain[-1] if chain else None):
        known["vc-llm"] = {"id": "vc-llm", "parent": promoted}
    return Gateway("http://gateway:8080", SecretStr("k"), known)


class FakeGateway:
    """Lists a chain of versions as the gateway does, the alias first, and counts the questions to each."""

    def __init__(self, *chain: str) -> None:
        self.cards = list(gateway(*chain).cards.values())
        self.asked: list[str] = []
        self.app = FastAPI()
        self.app.get("/v1/models")(lambda: {"data": self.cards})
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.asked.append((await request.json())["model"])
        return Response(chat_reply("fair answer").content, media_type="application/json")


class Scripted:
    """A scripted server behind a real socket, that counts and remembers the keys it was given."""

    def __init__(self, script: Endpoint, status: int = 200) -> None:
        self.handler = script._client._transport.handler
        self.status = status
        self.num = 0
        self.keys: list[str | None] = []
        self.app = FastAPI()
        self.app.post("/v1/chat/completions")(self.answer)

    async def answer(self, request: Request) -> Response:
        self.num += 1
        self.keys.append(request.headers.get("authorization"))
        if self.status != 200:
            return Response('{"error": {"message": "not you"}}', self.status)
        asked = httpx.Request("POST", "http://scripted/v1/chat/completions", content=await request.body())
        return Response(self.handler(asked).content, media_type="application/json")


def around(folder: Path, home: Path | None = None) -> Surroundings:
    return Surroundings(Console(width=400), home or folder / "var", CHARTER, RunFolder(folder))
