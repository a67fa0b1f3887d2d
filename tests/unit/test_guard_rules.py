"""What a guard reads out of a conversation, and what it makes of the Critic's word."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gateway.guarding.exchanges import earlier_answers, language_of, question_of
from gateway.guarding.opinions import Look, gravest, verdict_of
from gateway.guarding.rules import Rules
from vcllm.charter import CharterError, load_charter
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.guard import GuardMode, GuardPolicy, GuardVerdict
from vcllm.contracts.keys import KeyRecord, Scope
from vcllm.evaluation.opinions import Opinion, opinion_of


def talk(*turns: str) -> list[ChatMessage]:
    """Each begins with `s`, `u` or `a`, for who speaks."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [ChatMessage(role=roles[turn[0]], content=turn[1:]) for turn in turns]


# Conversations


def test_a_question_is_the_last_query_with_what_was_said_before():
    """In order, system messages included: the Critic reads what the Actor reads."""
    question = question_of(talk("sbe fair", "uone", "atwo", "uthree"))

    assert (question.query, question.begun) == ("three", "")
    assert [message.content for message in question.history] == ["be fair", "one", "two"]


@pytest.mark.parametrize(
    ("turns", "query", "history", "begun"),
    [
        (("sbe fair",), "", ["be fair"], ""),
        (("uone", "slater"), "one", ["later"], ""),
        (("uone", "ahalf"), "one", [], "half\n"),
        (("ahalf",), "", [], "half\n"),
        (("uone", "aa", "slater", "ab"), "one", ["later"], "a\nb\n"),
    ],
)
def test_odd_conversations_lose_nothing(turns: tuple[str, ...], query: str, history: list[str], begun: str):
    """Every turn is read as something."""
    question = question_of(talk(*turns))

    assert (question.query, [one.content for one in question.history], question.begun) == (query, history, begun)
    assert question.item("x") is not None


def test_earlier_answers_are_judged_with_their_own_queries():
    """Turns of the same speaker make one answer; empty ones are none."""
    found = list(earlier_answers(talk("uone", "atwo", "athree", "ufour", "a ", "ufive", "asix")))

    assert [(each.question.query, each.answer) for each in found] == [("one", "two\nthree"), ("five", "six")]
    assert [len(each.question.history) for each in found] == [0, 5]


def test_an_item_is_all_or_nothing():
    """What is longer than a Critic takes is not judged in part."""
    assert question_of(talk("u" + "x" * 8001)).item("y") is None
    assert question_of(talk("ux")).item("y" * 16_001) is None
    assert question_of(talk(*["ux"] * 64)).item("y") is not None


@pytest.mark.parametrize(
    ("text", "language"),
    [("", "en"), ("123", "en"), ("Hello", "en"), ("你好", "zh"), ("我说 hello", "zh"), ("the word 好 here", "en")],
)
def test_a_language_is_told_by_its_letters(text: str, language: str):
    assert language_of(text) == Language(language)


# Opinions


def critique(outcome: Outcome, violating: float, *, best: Outcome | None = None) -> Critique:
    """best: the likeliest, where a guard model has decided otherwise."""
    rest = Outcome.BROKEN if outcome is Outcome.VIOLATING and best is None else best or outcome
    shares = {Outcome.VIOLATING: violating, rest: 1 - violating}
    if outcome is Outcome.VIOLATING and best is None:
        shares = {Outcome.VIOLATING: violating, Outcome.BROKEN: violating / 2, Outcome.CONSISTENT: violating / 2}
    return Critique(outcome=outcome, score=0.5, probabilities=shares)


@pytest.mark.parametrize(
    ("found", "complete", "opinion"),
    [
        (critique(Outcome.CONSISTENT, 0.1), True, Opinion.PASS),
        (critique(Outcome.REFUSAL, 0.1), True, Opinion.PASS),
        (critique(Outcome.BROKEN, 0.1), True, Opinion.PASS),
        (critique(Outcome.BROKEN, 0.1), False, Opinion.PASS),
        (critique(Outcome.BROKEN, 0.7), True, Opinion.BLOCK),
        (critique(Outcome.BROKEN, 0.7), False, Opinion.BLOCK),
        (critique(Outcome.VIOLATING, 0.5), True, Opinion.BLOCK),
        (critique(Outcome.VIOLATING, 0.45), True, Opinion.BLOCK),
        (critique(Outcome.VIOLATING, 0.45), False, Opinion.PASS),
        (critique(Outcome.VIOLATING, 0.1, best=Outcome.CONSISTENT), False, Opinion.BLOCK),
        (Critique(outcome=Outcome.UNSCORED, failure="too_long"), True, Opinion.UNSCORED),
        (Critique(outcome=Outcome.UNSCORED, failure="outage"), True, Opinion.OUTAGE),
        (None, True, Opinion.UNSCORED),
    ],
)
def test_an_opinion_of_a_critique(found: Critique | None, complete: bool, opinion: Opinion):
    """A beginning is blocked by how likely it is violating alone, or by a guard model's veto."""
    assert opinion_of(found, 0.5, complete) is opinion


def test_an_outage_is_one_for_everything_that_was_asked():
    assert Look([None, None], out=True).opinions(0.5) == [Opinion.OUTAGE] * 2


@pytest.mark.parametrize(
    ("opinion", "enforced", "passing", "observed"),
    [
        (Opinion.PASS, "pass", "pass", "pass"),
        (Opinion.UNSCORED, "unscored-block", "unscored", "unscored"),
        (Opinion.OUTAGE, "outage-block", "outage", "outage"),
        (Opinion.BLOCK, "block", "block", "observed-block"),
    ],
)
def test_a_verdict_by_mode_and_switch(opinion: Opinion, enforced: str, passing: str, observed: str):
    """`on_outage: pass` never lets a violation through."""
    found = [
        verdict_of(opinion, GuardMode.ENFORCE, "block"),
        verdict_of(opinion, GuardMode.ENFORCE, "pass"),
        verdict_of(opinion, GuardMode.OBSERVE, "block"),
    ]

    assert found == [enforced, passing, observed]


def test_the_gravest_verdict_is_told():
    assert gravest([]) is GuardVerdict.PASS
    assert gravest([GuardVerdict.OUTAGE, GuardVerdict.PASS]) is GuardVerdict.OUTAGE
    assert gravest([GuardVerdict.OUTAGE_BLOCK, GuardVerdict.BLOCK]) is GuardVerdict.BLOCK


# Charter and keys


def test_the_guard_is_no_part_of_the_charters_hash(tmp_path):
    """Stricter serving makes no new lineage: versions and pairs stay what they were made under."""
    from tests.guard_world import write_charter

    write_charter(tmp_path, "strict", {"mode": "enforce", "threshold": 0.3})
    strict = load_charter(tmp_path / "strict")

    assert strict.charter.guard.threshold == 0.3
    assert strict.hash == load_charter().hash


def test_a_bare_off_in_yaml_is_a_mode(tmp_path):
    """YAML reads it as false."""
    from tests.guard_world import write_charter

    write_charter(tmp_path, "lax", {"mode": False})

    assert load_charter(tmp_path / "lax").charter.guard.mode is GuardMode.OFF


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"mode": "on"}, "guard.mode"),
        ({"stages": ["before", "beside"]}, "only one"),
        ({"stages": []}, "guard.stages"),
        ({"hold_back": 5}, "guard.hold_back"),
        ({"threshold": 0}, "guard.threshold"),
        ({"surprise": 1}, "guard.surprise"),
    ],
)
def test_a_wrong_guard_is_told_to_its_author(tmp_path, policy: dict[str, object], message: str):
    """By the place in their file."""
    from tests.guard_world import write_charter

    write_charter(tmp_path, "wrong", policy)

    with pytest.raises(CharterError, match=message):
        load_charter(tmp_path / "wrong")


@pytest.mark.parametrize("charter", list(GuardMode))
@pytest.mark.parametrize("own", [None, *GuardMode])
def test_a_key_has_the_charters_mode_or_its_own(charter: GuardMode, own: GuardMode | None):
    rules = Rules("pluralist", "0123456789abcdef", GuardPolicy(mode=charter))
    key = KeyRecord(id="k", name="n", scopes=[Scope.CHAT], created=0, hint="h", guard=own)
    wanted = own or charter

    rule = rules.of(key)

    assert (GuardMode.OFF if rule is None else rule.mode) is wanted
    assert rule is None or rule.stamp == f"pluralist@01234567:{wanted}"


def test_a_key_from_before_guards_is_read():
    """It has the charter's mode."""
    key = KeyRecord.model_validate({"id": "k", "name": "n", "scopes": ["chat"], "created": 0, "hint": "h"})

    assert key.guard is None
    with pytest.raises(ValidationError):
        KeyRecord.model_validate({**key.model_dump(), "guard": "perhaps"})
