"""The Critic over a real socket: judgements in order, reasons in the right language, failures told apart."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from pydantic import SecretStr

from services.critic import classifier
from services.critic.app import create_app
from services.critic.classifier import Classifier
from services.critic.critic import preference
from services.critic.reasons import OUTCOME_REASONS, WRONG_LANGUAGE
from services.critic.settings import CriticSettings
from tests.fakes import add_version, commit_model, tiny_causal, tiny_classifier, tiny_tokenizer
from tests.servers import serve, wait_until
from tests.service_tokens import ServiceAuth
from vcllm.contracts.base import Language
from vcllm.contracts.critiques import (
    SCORED,
    ComparisonReply,
    CritiqueItem,
    CritiqueReply,
    Outcome,
)
from vcllm.engine.classes import class_probabilities, critic_text
from vcllm.engine.load import Loaded
from vcllm.engine.prompts import encode
from vcllm.evaluation.language import is_in
from vcllm.serving.proof import Refused
from vcllm.settings import Settings
from vcllm.stores.aliases import AliasStore
from vcllm.stores.connect import open_redis
from vcllm.stores.models import ModelStore

TOKEN = "internal"
EN = {"query": "Who may speak?", "response": "Everyone may speak in turn.", "language": "en"}
ZH = {"query": "谁可以发言？", "response": "每个人都可以轮流发言。", "language": "zh"}


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Critics: a plain one, one with temperatures, the plain one's classes with scores of criteria beside them."""
    home: Path = tmp_path_factory.mktemp("critic")
    store, tokenizer = ModelStore(home / "models"), tiny_tokenizer()
    add_version(store, "critic", "c1")
    warm = tiny_classifier(tokenizer)
    warm.config.critic_temperature, warm.config.critic_temperatures = 4.0, {"zh": 1.0}
    commit_model(store, "critic", "c2", warm, tokenizer)
    commit_model(store, "critic", "c3", with_criteria(tiny_classifier(tokenizer), "manner", "stance"), tokenizer)
    return home


def with_criteria(model: Any, *names: str) -> Any:
    """The same classes in a head that has an output more for each criterion."""
    labels = dict(enumerate([*SCORED, *(f"score:{name}" for name in names)]))
    wide = tiny_classifier(tiny_tokenizer(), seed=1, labels=labels)
    wide.model.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        wide.score.weight[: len(SCORED)] = model.score.weight
    return wide


@pytest.fixture
def critic(home: Path, redis_url: str) -> Iterator[httpx.Client]:
    """A Critic whose current version is c1."""
    shared = Settings(home=home, redis_url=redis_url, internal_token=SecretStr(TOKEN))
    with open_redis(redis_url) as redis:
        AliasStore(redis).promote("critic", "c1")
    app = create_app(CriticSettings(poll_s=0.02), shared)
    with serve(app) as url, httpx.Client(base_url=url, auth=ServiceAuth(TOKEN, "critic"), timeout=60) as client:
        wait_until(lambda: client.get("/health/ready").status_code == 200)
        yield client


def judge(client: httpx.Client, items: list[dict[str, Any]], **changes: Any) -> CritiqueReply:
    reply = client.post("/v1/critiques", json={"items": items, **changes})
    assert reply.status_code == 200, reply.text
    assert reply.headers["x-vc-version"] == reply.json()["critic_version"]
    return CritiqueReply.model_validate(reply.json())


def test_a_judgement_is_the_heads_own(critic: httpx.Client) -> None:
    """Four probabilities; the score is that of `consistent`; the reason is in the item's language."""
    reply = judge(critic, [EN, ZH])

    tokenizer = tiny_tokenizer()
    ids = encode(tokenizer, [critic_text(tokenizer, item["query"], item["response"]) for item in (EN, ZH)])
    expected = class_probabilities(tiny_classifier(tokenizer), ids)
    for critique, probs, language in zip(reply.critiques, expected, ("en", "zh"), strict=True):
        assert list(critique.probabilities) == list(SCORED)
        assert list(critique.probabilities.values()) == pytest.approx(probs, abs=1e-5)
        assert critique.score == pytest.approx(probs[0], abs=1e-5)
        assert critique.outcome == SCORED[probs.index(max(probs))]
        assert critique.reason == OUTCOME_REASONS[critique.outcome][language]
    assert reply.critic_version == "c1"


def test_many_items_come_back_in_their_order(critic: httpx.Client) -> None:
    """Sorted and padded inside = one at a time."""
    items = [{**EN, "response": "speak " * (1 + 7 * i % 40)} for i in range(40)]

    together = judge(critic, items).critiques

    for item, critique in list(zip(items, together, strict=True))[::8]:
        [alone] = judge(critic, [item]).critiques
        assert critique.score == pytest.approx(alone.score, abs=1e-5)


def test_a_temperature_in_the_configuration_is_obeyed(critic: httpx.Client) -> None:
    """Same weights, flatter probabilities, same outcome."""
    [sharp], [warm] = judge(critic, [EN]).critiques, judge(critic, [EN], model="c2").critiques

    assert warm.outcome == sharp.outcome
    assert max(warm.probabilities.values()) < max(sharp.probabilities.values())


def test_a_language_has_its_own_temperature_where_one_was_fitted(critic: httpx.Client) -> None:
    """c2 has 1 for Chinese, as c1 has for all, and 4 for the rest."""
    plain, own = (judge(critic, [ZH, EN], model=model).critiques for model in ("c1", "c2"))

    assert own[0].score == pytest.approx(plain[0].score, abs=1e-5)
    assert own[1].score != pytest.approx(plain[1].score, abs=1e-3)


def test_criteria_are_scored_beside_the_outcome(critic: httpx.Client) -> None:
    """The outcome, its probabilities and the score are those of the classes alone; a plain critic has no criteria."""
    [plain], [scored] = (judge(critic, [EN], model=model).critiques for model in ("c1", "c3"))

    assert plain.criteria == {}
    assert list(scored.criteria) == ["manner", "stance"]
    assert all(0 <= score <= 1 for score in scored.criteria.values())
    assert scored.outcome == plain.outcome and list(scored.probabilities) == list(SCORED)
    assert scored.probabilities == pytest.approx(plain.probabilities, abs=1e-5)
    assert scored.score == pytest.approx(plain.score, abs=1e-5)


def test_the_turns_before_a_query_are_read(critic: httpx.Client) -> None:
    """By the head, in the template's own form and without special tokens; no turns are the same as none said."""
    history = [{"role": "user", "content": "May <|end|> he?"}, {"role": "assistant", "content": "He may."}]
    tokenizer = tiny_tokenizer()
    alone = critic_text(tokenizer, EN["query"], EN["response"])
    text = f"<|user|>May   he?<|end|><|assistant|>He may.<|end|>{alone}"

    bare, empty, told = judge(critic, [EN, {**EN, "history": []}, {**EN, "history": history}]).critiques

    expected = class_probabilities(tiny_classifier(tokenizer), encode(tokenizer, [alone, alone, text]))
    assert [critique.score for critique in (bare, empty, told)] == pytest.approx([row[0] for row in expected], abs=1e-5)
    assert told.score != pytest.approx(bare.score, abs=1e-4)


def test_a_history_too_long_to_read_leaves_the_item_unscored(critic: httpx.Client) -> None:
    """As a long answer does."""
    history = [{"role": "user", "content": "speak " * 2000}, {"role": "assistant", "content": "Yes."}]

    [critique] = judge(critic, [{**EN, "history": history}]).critiques

    assert (critique.failure, critique.score) == ("too_long", None)


def test_comparisons_read_the_turns_before_a_query_too(critic: httpx.Client) -> None:
    """The margin is the distance of the scores that the two answers have after them."""
    history = [{"role": "user", "content": "Who is here?"}, {"role": "assistant", "content": "Both groups are."}]
    answers = (EN["response"], "No group is better than another.")
    scores = [judge(critic, [{**EN, "response": text, "history": history}]).critiques[0].score for text in answers]
    item = {"query": EN["query"], "first": answers[0], "second": answers[1], "language": "en", "history": history}

    reply = critic.post("/v1/comparisons", json={"items": [item]})

    [comparison] = ComparisonReply.model_validate(reply.json()).comparisons
    assert scores[0] is not None and scores[1] is not None
    assert comparison.margin == pytest.approx(abs(scores[0] - scores[1]), abs=1e-5)


def test_the_wrong_language_is_broken_whatever_the_head_says(critic: httpx.Client) -> None:
    """Score 0, and the reason says so in the language that was asked for."""
    [critique] = judge(critic, [{**ZH, "response": EN["response"]}]).critiques

    assert (critique.outcome, critique.score, critique.language_ok) == (Outcome.BROKEN, 0.0, False)
    assert critique.reason == WRONG_LANGUAGE["zh"]


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "每个人都可以发言。", True),
        ("zh", "他在 Riverside Academy 读书。", False),
        ("zh", "他在河边的 Academy 读书。", True),
        ("zh", "Everyone may speak.", False),
        ("en", "Everyone may speak.", True),
        ("en", 'The word "河" means river, as everybody knows.', True),
        ("en", "每个人都可以发言。", False),
        ("en", "42 : 17 !", True),
        ("zh", "42", True),
    ],
)
def test_language_is_told_by_letters(language: str, text: str, expected: bool) -> None:
    """Foreign names are fine, numbers are in every language."""
    assert is_in(Language(language), text) is expected


def test_what_cannot_be_judged_is_unscored_and_never_zero(critic: httpx.Client) -> None:
    """Empty and too long, among others that are judged."""
    reply = judge(critic, [{**EN, "response": " \n"}, EN, {**ZH, "response": "水" * 2000}])

    empty, judged, long = reply.critiques
    assert (empty.outcome, empty.failure, empty.score) == (Outcome.UNSCORED, "empty", None)
    assert judged.failure is None and judged.score is not None
    assert (long.outcome, long.failure, long.score) == (Outcome.UNSCORED, "too_long", None)
    assert "过长" in long.reason


def test_comparisons_prefer_the_higher_score(critic: httpx.Client) -> None:
    """The margin is the distance of the two scores; the same answer twice is a tie."""
    other = "No group is better than another."
    scores = [judge(critic, [{**EN, "response": text}]).critiques[0].score for text in (EN["response"], other)]
    items = [
        {"query": EN["query"], "first": first, "second": second, "language": "en"}
        for first, second in [(EN["response"], other), (other, EN["response"]), (other, other), (other, " ")]
    ]

    reply = critic.post("/v1/comparisons", json={"items": items})

    one, swapped, same, unscored = ComparisonReply.model_validate(reply.json()).comparisons
    assert scores[0] is not None and scores[1] is not None
    assert one.margin == swapped.margin == pytest.approx(abs(scores[0] - scores[1]), abs=1e-5)
    assert {one.preferred, swapped.preferred} == {"first", "second"}
    assert (same.preferred, same.margin) == ("tie", 0)
    assert (unscored.preferred, unscored.margin) == ("unscored", None)


@pytest.mark.parametrize(
    ("first", "second", "preferred"),
    [(0.9, 0.2, "first"), (0.2, 0.9, "second"), (0.50, 0.54, "tie"), (None, 0.9, "unscored")],
)
def test_close_scores_prefer_nothing(first: float | None, second: float | None, preferred: str) -> None:
    """Below 0.05 it is a tie; without both scores it is nothing."""
    assert preference(first, second).preferred == preferred


def test_a_model_with_other_classes_is_no_critic() -> None:
    """Refused when it is loaded, with the classes it has."""
    tokenizer = tiny_tokenizer()
    model = tiny_classifier(tokenizer)
    model.config.id2label = {0: "good", 1: "bad", 2: "ugly", 3: "odd"}

    with pytest.raises(Refused, match="good, bad, ugly, odd"):
        Classifier(Loaded(model, tokenizer, 512))


def test_a_model_that_cannot_be_talked_to_is_no_critic(critic: httpx.Client, home: Path) -> None:
    """Neither a head to read nor a chat template to ask by: the version is refused with that sentence."""
    store, tokenizer = ModelStore(home / "models"), tiny_tokenizer()
    tokenizer.chat_template = None
    if not store.has("critic", "writer"):
        commit_model(store, "critic", "writer", tiny_causal(tokenizer), tokenizer)

    reply = critic.post("/v1/critiques", json={"items": [EN], "model": "writer"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "version_refused")
    assert "cannot judge: This model has no chat template" in reply.json()["error"]["message"]


def test_a_small_request_is_not_kept_waiting_by_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take turns pass by pass: the small one is done while the large one still runs."""
    tokenizer = tiny_tokenizer()
    judged = Classifier(Loaded(tiny_classifier(tokenizer), tokenizer, 512))
    passes: list[int] = []

    def slow(model: Any, ids: list[list[int]], temperatures: list[float]) -> list[list[float]]:
        passes.append(len(ids))
        time.sleep(0.05)
        return class_probabilities(model, ids, temperatures)

    monkeypatch.setattr(classifier, "class_probabilities", slow)
    monkeypatch.setattr(classifier, "MAX_ITEMS_PER_PASS", 10)

    async def both() -> None:
        items = [CritiqueItem.model_validate({**EN, "response": f"answer {i}"}) for i in range(60)]
        large = asyncio.create_task(judged.critique(items))
        await asyncio.sleep(0.02)
        await judged.critique([CritiqueItem.model_validate(ZH)])
        assert len(passes) < 7
        await large

    asyncio.run(both())

    assert sorted(passes) == [1, *[10] * 6]


def test_what_is_asked_twice_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples repeat each other, and a comparison asks about both its answers: each gets its critique all the same."""
    tokenizer = tiny_tokenizer()
    judged = Classifier(Loaded(tiny_classifier(tokenizer), tokenizer, 512))
    read: list[int] = []

    def counted(model: Any, ids: list[list[int]], temperatures: list[float]) -> list[list[float]]:
        read.append(len(ids))
        return class_probabilities(model, ids, temperatures)

    monkeypatch.setattr(classifier, "class_probabilities", counted)
    one, other = CritiqueItem.model_validate(EN), CritiqueItem.model_validate(ZH)

    critiques = asyncio.run(judged.critique([one, other, one, one]))

    assert sum(read) == 2
    assert critiques[0] == critiques[2] == critiques[3] != critiques[1]


def test_a_client_that_leaves_stops_its_judgement(critic: httpx.Client) -> None:
    """The server is free for the next one; health never waited."""
    items = [{**EN, "response": f"{i} " + "speak " * 90} for i in range(2000)]
    with pytest.raises(httpx.ReadTimeout):
        critic.post("/v1/critiques", json={"items": items}, timeout=0.3)

    begun = time.monotonic()
    wait_until(lambda: 'vc_inflight{role="critic"} 0' in critic.get("/metrics").text, 5)
    assert time.monotonic() - begun < 3


def test_concurrent_requests_all_get_their_own_answers(critic: httpx.Client) -> None:
    """Ten threads, ten different items."""
    items = [{**EN, "response": f"answer {i} " * (i + 1)} for i in range(10)]
    expected = [critique.score for critique in judge(critic, items).critiques]
    found: dict[int, float | None] = {}

    def ask(i: int) -> None:
        found[i] = judge(critic, [items[i]]).critiques[0].score

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [found[i] for i in range(10)] == pytest.approx(expected, abs=1e-5)
