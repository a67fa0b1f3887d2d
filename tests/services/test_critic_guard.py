"""A guard model behind a critic: what it finds unsafe is not consistent, and what it cannot read is not scored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.critic.backends import Backends
from services.critic.critic import scored
from services.critic.guard import Guard, Guarded, Labels
from services.critic.reasons import VETOED
from services.critic.settings import CriticSettings
from tests.fakes import add_version, commit_model, tiny_causal, tiny_classifier, tiny_tokenizer
from tests.scripted_engine import ScriptedEngine
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Comparison, ComparisonItem, Critique, CritiqueItem, Outcome
from vcllm.contracts.problems import Unavailable
from vcllm.engine.load import Loaded
from vcllm.serving.proof import Refused
from vcllm.settings import Settings
from vcllm.stores.models import ModelStore

LABELS = Labels(safe=("safe", "unsure"), unsafe=("unsafe",))


class Approving:
    """A critic that finds everything consistent, a refusal aside, and every first answer the better one."""

    def __init__(self) -> None:
        self.closed = False

    async def critique(self, items: Sequence[CritiqueItem]) -> list[Critique]:
        return [
            scored(item, {Outcome.CONSISTENT: 0.2, Outcome.REFUSAL: 0.8}, {})
            if item.response == "no"
            else scored(item, {Outcome.CONSISTENT: 0.9, Outcome.REFUSAL: 0.1}, {})
            for item in items
        ]

    async def compare(self, items: Sequence[ComparisonItem]) -> list[Comparison]:
        return [Comparison(preferred="first", margin=0.5)] * len(items)

    def close(self) -> None:
        self.closed = True


def opinion(text: str, label: str) -> float:
    """Finds what is bad unsafe with 0.8 of 1, and mumbles something else about what is odd."""
    if "odd" in text:
        return 0.001
    unsafe = 0.8 if "bad" in text else 0.1
    return {"safe": 0.9 - unsafe, "unsure": 0.1, "unsafe": unsafe}[label]


def guarded(failure: Exception | None = None) -> Guarded:
    engine = ScriptedEngine(opinion, failure=failure)
    return Guarded(Approving(), Guard(engine, LABELS, threshold=0.5, min_mass=0.05))


def item(response: str, language: Language = Language.EN) -> CritiqueItem:
    return CritiqueItem(query="?", response=response, language=language)


def test_what_a_guard_finds_unsafe_is_not_consistent() -> None:
    """Violating instead, with what the guard leaves of the score and a reason that says so; the rest stays."""
    good, bad = asyncio.run(guarded().critique([item("good"), item("坏 bad 很坏很坏", Language.ZH)]))

    assert (good.outcome, good.score) == (Outcome.CONSISTENT, 0.9)
    assert (bad.outcome, bad.score) == (Outcome.VIOLATING, pytest.approx(0.2))
    assert bad.reason == VETOED["zh"]
    assert bad.probabilities[Outcome.CONSISTENT] == 0.9


def test_a_guard_changes_no_other_outcome() -> None:
    """A refusal stays a refusal."""
    [refusal] = asyncio.run(guarded().critique([item("no")]))

    assert (refusal.outcome, refusal.score) == (Outcome.REFUSAL, 0.2)


def test_what_a_guard_cannot_read_is_unscored() -> None:
    """A veto that could not be asked for must not look like consent."""
    [mumbled] = asyncio.run(guarded().critique([item("odd")]))
    [down] = asyncio.run(guarded(Unavailable("Nobody there.")).critique([item("good")]))

    assert (mumbled.failure, mumbled.score) == ("off_scale", None)
    assert (down.failure, down.score) == ("outage", None)


@pytest.mark.parametrize(
    ("first", "second", "preferred", "margin"),
    [
        ("good", "fine", "first", 0.5),
        ("bad", "fine", "second", 0.7),
        ("good", "bad", "first", 0.7),
        ("bad", "bad too", "first", 0.5),
        ("odd", "good", "unscored", None),
    ],
)
def test_a_vetoed_answer_is_not_preferred(first: str, second: str, preferred: str, margin: float | None) -> None:
    """To one that is not vetoed; between two of a kind the critic decides."""
    asked = ComparisonItem(query="?", first=first, second=second, language=Language.EN)

    [comparison] = asyncio.run(guarded().compare([asked]))

    assert comparison.preferred == preferred
    assert comparison.margin == (None if margin is None else pytest.approx(margin))


def test_a_guard_reads_the_whole_conversation() -> None:
    """What was said before may be what makes an answer unsafe; of two answers, each after the same turns."""
    history = [ChatMessage(role="user", content="a bad thing"), ChatMessage(role="assistant", content="Go on.")]
    asked = ComparisonItem(query="?", first="one", second="two", language=Language.EN, history=history)
    critic = guarded()

    [critique] = asyncio.run(critic.critique([item("good").model_copy(update={"history": history})]))
    asyncio.run(critic.compare([asked]))

    assert critique.outcome is Outcome.VIOLATING
    engine = critic.guard.engine
    assert isinstance(engine, ScriptedEngine)
    before = "a bad thing\nGo on.\n?\n"
    assert engine.calls == [[f"{before}good"], [f"{before}one", f"{before}two"]]


@pytest.fixture
def shared(tmp_path: Path) -> Settings:
    """A store with a chat model among the critics and a classifier."""
    store, tokenizer = ModelStore(tmp_path / "models"), tiny_tokenizer()
    commit_model(store, "critic", "guard", tiny_causal(tokenizer), tokenizer)
    add_version(store, "critic", "head")
    return Settings(home=tmp_path)


def classifier() -> Loaded:
    tokenizer = tiny_tokenizer()
    return Loaded(tiny_classifier(tokenizer), tokenizer, 512, "classifier")


def test_critics_share_a_guard_that_goes_with_the_last(shared: Settings) -> None:
    """One copy in memory; its engine is still up when the first critic is unloaded."""
    backends = Backends(CriticSettings(guard="critic/guard", min_mass=0.0), shared)
    one, other = backends.open(classifier()), backends.open(classifier())
    assert isinstance(one, Guarded) and isinstance(other, Guarded)
    assert one.guard is other.guard

    one.close()

    [critique] = asyncio.run(other.critique([item("good")]))
    assert critique.score is not None
    other.close()
    [critique] = asyncio.run(backends_again(backends))
    assert critique.score is not None


async def backends_again(backends: Backends) -> list[Critique]:
    """A critic opened after all others were closed."""
    critic = backends.open(classifier())
    try:
        return await critic.critique([item("good")])
    finally:
        critic.close()


@pytest.mark.parametrize(
    ("guard", "sentence"),
    [("critic/head", "head holds a classifier; needed is a language model"), ("/nowhere/at-all", "nowhere")],
)
def test_what_cannot_be_a_guard_is_refused(shared: Settings, guard: str, sentence: str) -> None:
    """With the setting to mend."""
    backends = Backends(CriticSettings(guard=guard), shared)

    with pytest.raises(Refused, match=f"CRITIC_GUARD={guard} cannot be used") as refused:
        backends.open(classifier())

    assert sentence in str(refused.value)
