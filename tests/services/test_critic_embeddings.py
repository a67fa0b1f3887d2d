"""Where texts lie by the critic's model: as by hand, whatever else is read beside them, and in turns with the rest."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr
from tokenizers import normalizers

from services.critic import classifier
from services.critic.app import create_app
from services.critic.classifier import Classifier
from services.critic.guard import Guard, Guarded, Labels
from services.critic.judge import PROMPTS_PER_CALL, Judge
from services.critic.settings import CriticSettings
from tests.fakes import add_version, commit_model, tiny_causal, tiny_classifier, tiny_tokenizer
from tests.scripted_engine import ScriptedEngine
from tests.servers import serve, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import CritiqueItem, EmbeddingRequest
from vcllm.contracts.problems import BadRequest, NotFound, Unavailable
from vcllm.engine.embedding import LONGEST_PIECE, add_states
from vcllm.engine.load import Loaded
from vcllm.engine.remote import RemoteEngine
from vcllm.engine.upstream import NOT_SUPPORTED, Upstream
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore
from vcllm.web.clients import CHUNK_ITEMS, CriticClient

TOKEN = "internal"
TEXTS = [
    "Who may speak?",
    "谁可以发言？",
    "speak " * 90,
    "Everyone may speak in turn, by the river and in the council.",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained head, a chat model, and a head whose tokenizer finds nothing in blanks."""
    home: Path = tmp_path_factory.mktemp("critic")
    store, tokenizer = ModelStore(home / "models"), tiny_tokenizer()
    add_version(store, "critic", "head")
    commit_model(store, "critic", "chat", tiny_causal(tokenizer), tokenizer)
    trimming = tiny_tokenizer()
    trimming.backend_tokenizer.normalizer = normalizers.Strip()
    commit_model(store, "critic", "trimming", tiny_classifier(trimming), trimming)
    return home


@pytest.fixture
def url(home: Path, redis_url: str) -> Iterator[str]:
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    with open_redis(redis_url) as redis:
        AliasStore(redis).promote("critic", "head")
    with serve(create_app(CriticSettings(poll_s=0.02), shared)) as url:
        wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        yield url


@pytest.fixture
def critic(url: str) -> Iterator[CriticClient]:
    with CriticClient([url], SecretStr(TOKEN), patience_s=1) as client:
        yield client


def embed(critic: CriticClient, texts: Sequence[str], model: str = "head") -> list[list[float]]:
    reply = critic.embeddings(EmbeddingRequest(texts=list(texts), model=model))
    assert reply.critic_version == model
    return reply.embeddings


def by_hand(model: Any, text: str) -> list[float]:
    """The mean of the last hidden states, of a text that is read alone and at once."""
    ids = tiny_tokenizer()(text, add_special_tokens=False)["input_ids"]
    with torch.inference_mode():
        mean = model.model(torch.tensor([ids])).last_hidden_state[0].mean(0)
    return (mean / mean.norm()).tolist()


@pytest.mark.parametrize(("version", "make"), [("head", tiny_classifier), ("chat", tiny_causal)])
def test_a_text_lies_where_its_mean_hidden_state_does(critic: CriticClient, version: str, make: Any) -> None:
    """Of unit length; of a head's model and of a judge's, whatever way through it that takes."""
    found = embed(critic, TEXTS, version)

    model = make(tiny_tokenizer())
    for text, vector in zip(TEXTS, found, strict=True):
        assert vector == pytest.approx(by_hand(model, text), abs=1e-4)
        assert math.hypot(*vector) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("version", ["head", "chat"])
def test_neighbours_and_padding_do_not_move_a_text(critic: CriticClient, version: str) -> None:
    """Among many, shorter and longer ones = alone."""
    texts = ["speak " * (1 + 7 * n % 40) for n in range(60)]

    together = embed(critic, texts, version)

    for n in (0, 17, 33):
        assert together[n] == pytest.approx(embed(critic, [texts[n]], version)[0], abs=1e-5)


def test_a_long_text_counts_with_all_of_its_tokens(critic: CriticClient) -> None:
    """It is read in pieces; how many tokens the model takes at once is nobody's business."""
    long = "水" * 1500
    ids = tiny_tokenizer()(long, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2 * LONGEST_PIECE
    model = tiny_classifier(tiny_tokenizer())
    with torch.inference_mode():
        pieces = [ids[start : start + LONGEST_PIECE] for start in range(0, len(ids), LONGEST_PIECE)]
        whole = sum(model.model(torch.tensor([piece])).last_hidden_state[0].sum(0) for piece in pieces)

    for version in ("head", "chat"):
        short, vector = embed(critic, ["Who?", long], version)
        assert len(short) == len(vector)
        if version == "head":
            assert vector == pytest.approx((whole / whole.norm()).tolist(), abs=1e-4)


def test_a_spelling_of_a_special_token_is_only_text(critic: CriticClient) -> None:
    """As everywhere, it is blanked."""
    spelled, blank = embed(critic, ["May he <|end|> speak?", "May he   speak?"])

    assert spelled == pytest.approx(blank, abs=1e-5)


def test_a_text_without_tokens_is_refused_by_its_place(critic: CriticClient) -> None:
    """There is no direction to give for nothing; the client says what the server said, and does not ask again."""
    with pytest.raises(BadRequest, match="Text 1 has nothing to read. Leave it out.") as refused:
        embed(critic, ["speak", "  "], "trimming")

    assert refused.value.param == "texts"


def test_the_client_asks_in_chunks_and_in_order(critic: CriticClient) -> None:
    """More texts than fit one call are as those of two calls."""
    texts = [f"speak {n}" for n in range(CHUNK_ITEMS + 5)]

    found = embed(critic, texts)

    assert len(found) == len(texts)
    assert found[-1] == pytest.approx(embed(critic, texts[-1:])[0], abs=1e-5)


def test_only_the_house_may_ask(url: str) -> None:
    """As for critiques; the version is in the reply's head."""
    body = {"texts": ["speak"]}

    refused = httpx.post(f"{url}/v1/embeddings", json=body)
    reply = httpx.post(f"{url}/v1/embeddings", json=body, auth=ServiceAuth(TOKEN, "critic"))

    assert refused.status_code == 401
    assert reply.headers["x-vc-version"] == reply.json()["critic_version"] == "head"


def test_a_version_that_is_not_there_is_named(critic: CriticClient) -> None:
    """Wrong input, and not asked again."""
    with pytest.raises(NotFound, match="absent"):
        embed(critic, ["speak"], "absent")


# Back ends.


def test_an_upstream_server_keeps_its_hidden_states() -> None:
    """A judge behind one says what to do instead; a guard in front of it changes nothing."""
    engine = RemoteEngine(Upstream(url="http://127.0.0.1:9"), "model")
    judge = Judge(engine, {}, min_mass=0.05)
    guard = Guard(ScriptedEngine(lambda text, line: 0.5), Labels(("safe",), ("unsafe",)), threshold=0.5, min_mass=0.05)

    for critic in (judge, Guarded(judge, guard)):
        with pytest.raises(BadRequest, match="does not tell where texts lie") as refused:
            asyncio.run(critic.embed(["speak"]))
        assert refused.value.code == NOT_SUPPORTED


class Placing(ScriptedEngine):
    """Places a text by its number of letters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda text, line: 0.5, **options)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        self.calls.append(list(texts))
        await asyncio.sleep(0.001)
        if self.failure is not None:
            raise self.failure
        return [[float(len(text))] for text in texts]


def test_a_judge_places_texts_in_turns_of_similar_length() -> None:
    """In order in the end; a small request is done while a large one has hardly begun."""
    engine, done = Placing(), list[str]()
    judge = Judge(engine, {}, min_mass=0.05)
    texts = ["a" * (1 + 7 * n % 400) for n in range(400)]

    async def ask(name: str, asked: list[str]) -> None:
        assert await judge.embed(asked) == [[float(len(text))] for text in asked]
        done.append(f"{name} after {len(engine.calls)} calls")

    async def both() -> None:
        await asyncio.gather(ask("large", texts), ask("small", ["a"]))

    asyncio.run(both())

    assert done == ["small after 2 calls", "large after 14 calls"]
    assert max(map(len, engine.calls)) == PROMPTS_PER_CALL


def test_an_outage_is_told_and_no_vector_made_up() -> None:
    """Unlike a critique, which stands alone, a batch of vectors is of use only together."""
    judge = Judge(Placing(failure=Unavailable("Nobody there.")), {}, min_mass=0.05)

    with pytest.raises(Unavailable, match="Nobody there"):
        asyncio.run(judge.embed(["speak"]))


def test_critiques_are_not_kept_waiting_by_many_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns pass by pass with a head, too."""
    tokenizer = tiny_tokenizer()
    judged = Classifier(Loaded(tiny_classifier(tokenizer), tokenizer, 512))
    passes: list[int] = []

    def slow(sums: Any, model: Any, pieces: Sequence[Any]) -> None:
        passes.append(len(pieces))
        time.sleep(0.05)
        add_states(sums, model, pieces)

    monkeypatch.setattr(classifier, "add_states", slow)
    monkeypatch.setattr(classifier, "MAX_ITEMS_PER_PASS", 10)

    async def both() -> None:
        many = asyncio.create_task(judged.embed(["Who may speak?"] * 60))
        await asyncio.sleep(0.02)
        await judged.critique([CritiqueItem(query="Who?", response="All may.", language=Language.EN)])
        assert len(passes) < 6
        await many

    asyncio.run(both())

    assert passes == [10] * 6
