"""Versions change under load: over real HTTP, by a real alias, held against what plain transformers says.

The prompts are ones at which every version is sure of each of its greedy tokens, so that two ways of computing the
same cannot differ by a near tie.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import SecretStr

from services.actor.app import create_app
from services.actor.settings import ActorSettings
from tests.fakes import commit_model, tiny_causal, tiny_tokenizer
from tests.servers import serve
from tests.service_tokens import ServiceAuth
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

TOKEN = "internal"
NUM_TOKENS = 6
SEEN_WITHIN_S = 120
"""From the last promotion to its first reply, at the very most."""
SURE = 0.02
"""Logits between a greedy token and the next best, at the least."""
CANDIDATES = [f"{word} {number}?" for word in ("Who may speak", "What is fair", "谁可以发言") for number in range(8)]


@dataclass(frozen=True)
class Fleet:
    """Versions in a store, and what each says to each prompt."""

    home: Path
    says: dict[str, dict[str, str]]
    prompts: list[str]


Made = Callable[[int], tuple[Any, dict[str, Any]]]
"""Of a seed: a model, and the fields of its manifest."""


def make_fleet(home: Path, num_versions: int, make: Made) -> Fleet:
    store, tokenizer = ModelStore(home / "models"), tiny_tokenizer()
    says: dict[str, dict[str, str]] = {}
    for seed in range(1, num_versions + 1):
        model, fields = make(seed)
        commit_model(store, "actor", f"v{seed}", model, tokenizer, created=seed, **fields)
        says[f"v{seed}"] = greedy_by_transformers(model, tokenizer)
    prompts = [prompt for prompt in CANDIDATES if all(prompt in texts for texts in says.values())]
    assert len(prompts) >= 3, "too few prompts are sure in every version"
    return Fleet(home, says, prompts)


def greedy_by_transformers(model: Any, tokenizer: Any) -> dict[str, str]:
    """The greedy answers of `generate`, as far as the model is sure of them."""
    texts = {}
    for prompt in CANDIDATES:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model.generate(
            **ids, max_new_tokens=NUM_TOKENS, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        best_T2 = torch.stack(written.logits)[:, 0].topk(2).values
        text = tokenizer.decode(written.sequences[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
        if float((best_T2[:, 0] - best_T2[:, 1]).min()) > SURE:
            texts[prompt] = text.rstrip("\ufffd")  # a character cut off at the end is not shown
    return texts


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Eleven versions with weights of their own."""
    return make_fleet(tmp_path_factory.mktemp("full"), 11, lambda seed: (tiny_causal(tiny_tokenizer(), seed), {}))


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Five adapters on one base."""
    home, tokenizer = tmp_path_factory.mktemp("adapters"), tiny_tokenizer()
    commit_model(ModelStore(home / "models"), "actor", "base", tiny_causal(tokenizer), tokenizer)

    def make(seed: int) -> tuple[Any, dict[str, Any]]:
        torch.manual_seed(seed)
        config = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
        return get_peft_model(tiny_causal(tokenizer), config).eval(), {"base": "actor/base"}

    return make_fleet(home, 5, make)


@dataclass(frozen=True)
class Reply:
    """What a client got."""

    prompt: str
    version: str
    """By the header."""
    models: frozenset[str]
    """By the body, or by each frame of it."""
    text: str


class Clients:
    """So many at a time ask until `num_requests` replies, one of them by `last`, are there; every other is streamed."""

    def __init__(self, http: httpx.AsyncClient, prompts: list[str], num_requests: int, last: str) -> None:
        self.http = http
        self.prompts = prompts
        self.num_requests = num_requests
        self.last = last
        self.numbers = count()
        self.replies: list[Reply] = []

    def is_done(self) -> bool:
        """Whether there are replies enough, the last version's among them."""
        return len(self.replies) >= self.num_requests and any(reply.version == self.last for reply in self.replies)

    async def ask_on(self) -> None:
        while not self.is_done():
            number = next(self.numbers)
            prompt = self.prompts[number // 2 % len(self.prompts)]
            body = {
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": NUM_TOKENS,
                "temperature": 0,
                "stream": number % 2 == 1,
            }
            reply = await self.http.post("/v1/chat/completions", json=body)
            assert reply.status_code == 200, reply.text
            self.replies.append(read_stream(prompt, reply) if body["stream"] else read_whole(prompt, reply))


def read_whole(prompt: str, reply: httpx.Response) -> Reply:
    content = reply.json()
    text = content["choices"][0]["message"]["content"]
    return Reply(prompt, reply.headers["x-vc-version"], frozenset({content["model"]}), text)


def read_stream(prompt: str, reply: httpx.Response) -> Reply:
    lines = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    frames = [json.loads(line) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content") or "" for frame in frames for choice in frame["choices"])
    return Reply(prompt, reply.headers["x-vc-version"], frozenset(frame["model"] for frame in frames), text)


async def change_under_load(url: str, aliases: AliasStore, fleet: Fleet, num_requests: int) -> list[Reply]:
    """Promote every version in turn, evenly over the replies, each when the one before it has answered."""
    limits = httpx.Limits(max_connections=12)
    auth = ServiceAuth(TOKEN, "actor")
    async with httpx.AsyncClient(base_url=url, auth=auth, timeout=60, limits=limits) as http:
        while (await http.get("/health/ready")).status_code != 200:
            await asyncio.sleep(0.02)
        versions = list(fleet.says)
        clients = Clients(http, fleet.prompts, num_requests, versions[-1])
        asking = asyncio.gather(*(clients.ask_on() for _ in range(12)))
        for place, (before, version) in enumerate(pairwise(versions), start=1):
            while not asking.done() and (
                len(clients.replies) < place * num_requests // len(versions)
                or all(reply.version != before for reply in clients.replies)
            ):
                await asyncio.sleep(0.005)
            await asyncio.to_thread(aliases.promote, "actor", version)
        async with asyncio.timeout(SEEN_WITHIN_S):
            await asking
    return clients.replies


@pytest.fixture
def aliases(redis_url: str) -> Iterator[AliasStore]:
    with open_redis(redis_url, patience=0) as redis:
        yield AliasStore(redis)


@pytest.mark.parametrize(("kind", "num_requests"), [("full", 1000), ("adapters", 250)])
def test_no_request_fails_or_lies_while_versions_change(
    kind: str, num_requests: int, request: pytest.FixtureRequest, redis_url: str, aliases: AliasStore
) -> None:
    """Each reply names the version that made it, and is that version's greedy text to the letter."""
    fleet: Fleet = request.getfixturevalue(kind)
    shared = Settings(home=fleet.home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    aliases.promote("actor", "v1")

    with serve(create_app(ActorSettings(poll_s=0.02), shared)) as url:
        replies = asyncio.run(change_under_load(url, aliases, fleet, num_requests))

    assert len(replies) >= num_requests
    assert [reply for reply in replies if reply.models != {reply.version}] == []
    assert [reply for reply in replies if reply.text != fleet.says[reply.version][reply.prompt]] == []
    served = Counter(reply.version for reply in replies)
    assert set(served) == set(fleet.says), "every change came about while requests ran"
