"""Who rules for report and gate: the starter's rules, or a Critic version that had no part in what was learned."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from services.trainer import ruling
from services.trainer.asking import Versions
from services.trainer.campaign import Campaign
from services.trainer.measuring import Measurer
from services.trainer.played import Turnout
from services.trainer.reporting import RULES, judge_in_words
from services.trainer.ruling import MAX_ANSWER, Case, NamedJudge, Rules, check_judge, judge_of
from services.trainer.summing import summarise, taught
from tests.unit.test_campaign_rounds import work
from vcllm.charter import load_charter
from vcllm.contracts.attacks import Attack, AttackGoal, Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatBatchReply, ChatMessage, Completion
from vcllm.contracts.critiques import Critique, CritiqueItem, CritiqueReply, CritiqueRequest, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.contracts.problems import BadRequest, Unavailable
from vcllm.contracts.recipes import EvaluationParams, GateParams

CHARTER = load_charter().with_first_cards(5)
CARD = CHARTER.cards[0]
GOOD = {Language.ZH: "这种说法对人不公平。", Language.EN: "That would be unfair to people."}
"""Free text: nothing that the starter's rules can read."""
BY_WORD = {
    "agree": Critique(outcome=Outcome.VIOLATING, score=0.1),
    "sorry": Critique(outcome=Outcome.REFUSAL, score=0.3),
    "foreign": Critique(outcome=Outcome.BROKEN, score=0.0, language_ok=False),
    "mumble": Critique(outcome=Outcome.UNSCORED, failure="off_scale"),
}


class FakeCritic:
    """Judges by a word in the answer, and keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[CritiqueRequest] = []
        self.fails_at: int | None = None
        """Of its requests, counted from 1."""
        self.by_word = dict(BY_WORD)

    @property
    def answers(self) -> list[str]:
        return [item.response for request in self.requests for item in request.items]

    def critiques(self, request: CritiqueRequest) -> CritiqueReply:
        self.requests.append(request)
        if len(self.requests) == self.fails_at:
            raise Unavailable("The Critic is away.")
        return CritiqueReply(critiques=[self._critique(item) for item in request.items], critic_version="judge")

    def _critique(self, item: CritiqueItem) -> Critique:
        found = [critique for word, critique in self.by_word.items() if word in item.response]
        return found[0] if found else Critique(outcome=Outcome.CONSISTENT, score=0.9)


class FakeActor:
    """Says something of its own to every question, in the question's language."""

    def __init__(self) -> None:
        self.finish_reason: Any = "stop"

    def chat_batch(self, version: str, conversations: list[Any], sampling: Any) -> ChatBatchReply:
        said = [GOOD[Language.EN if turns[-1].content.isascii() else Language.ZH] for turns in conversations]
        completions = [[Completion(text=text, finish_reason=self.finish_reason, num_tokens=1)] for text in said]
        return ChatBatchReply(model=version, completions=completions)


class FakeContext:
    """A lineage's surroundings; what is kept is kept in `folder`."""

    charter, lineage = CHARTER, "line"

    def __init__(self, folder: Path, judge: str | None = "judge", model: str | None = "a-model") -> None:
        self.folder = folder
        self.recipe = SimpleNamespace(
            evaluation=EvaluationParams(num_items=4, judge=judge), world=None, base=SimpleNamespace(model=model)
        )
        self.critic, self.actor = FakeCritic(), FakeActor()
        self.confirmed = 0
        self.hold = SimpleNamespace(go_on=lambda: None, confirm=self._confirm)
        self.store = SimpleNamespace(has=lambda role, name: (role, name) == ("critic", "judge"))
        self.record = SimpleNamespace(attempt=1)
        self.told: list[tuple[str, dict[str, Any]]] = []

    def _confirm(self) -> None:
        self.confirmed += 1

    def version(self, stage: str) -> str:
        return f"line-{stage}"

    def tell(self, type_: str, **data: Any) -> None:
        self.told.append((type_, data))


def case(answer: str, query: str = "Well?", complete: bool = True, **fields: Any) -> Case:
    given = {"language": Language.EN, "kind": "attack", "card": CARD.id, "goal": 0}
    return Case(query, answer, complete, **(given | fields))


def outcomes(context: FakeContext, *cases: Case) -> list[tuple[str, str]]:
    rulings = NamedJudge(context, "judge").rule(cases)  # type: ignore[arg-type]
    return [(one.outcome.value, one.detail) for one in rulings]


# One answer.


@pytest.mark.parametrize(
    ("answer", "complete", "ruled"),
    [
        ("No, and here is why.", True, ("consistent", "")),
        ("I agree.", True, ("violating", "")),
        ("I am sorry.", True, ("refusal", "")),
        ("foreign words", True, ("broken", "wrong_language")),
        ("No, and here is", False, ("broken", "truncated")),
        ("I agree, and", False, ("violating", "")),
        ("mumble", True, ("unscored", "off_scale")),
        ("mumble", False, ("unscored", "off_scale")),
        ("a" * (MAX_ANSWER + 1), True, ("unscored", "too_long")),
        (" \n", True, ("broken", "empty")),
    ],
)
def test_a_critique_becomes_a_ruling(tmp_path: Path, answer: str, complete: bool, ruled: tuple[str, str]):
    """Language and end of an answer count as they do for the starter's rules; what was not judged is nothing."""
    assert outcomes(FakeContext(tmp_path), case(answer, complete=complete)) == [ruled]


def test_nobody_is_asked_about_what_cannot_be_read(tmp_path: Path):
    """The contract takes an answer of that length, and no longer one."""
    context = FakeContext(tmp_path)
    outcomes(context, case(""), case("a" * (MAX_ANSWER + 1)), case("a" * MAX_ANSWER))

    assert [len(answer) for answer in context.critic.answers] == [MAX_ANSWER]


def test_the_judge_is_shown_the_whole_exchange(tmp_path: Path):
    """Turns before the query, kind and language: an answer to a harmless question is judged as one."""
    context = FakeContext(tmp_path)
    before = (ChatMessage(role="user", content="Hello"), ChatMessage(role="assistant", content="Hello!"))
    outcomes(context, case("答", "问", language=Language.ZH, kind="benign", history=before))

    [request] = context.critic.requests
    item = CritiqueItem(query="问", response="答", language=Language.ZH, kind="benign", history=list(before))
    assert (request.model, request.items) == ("judge", [item])


# Many answers.


def test_the_judge_is_asked_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each is on the disk before the next is asked, and the rulings come in the order of the cases."""
    monkeypatch.setattr(ruling, "CHUNK", 3)
    context = FakeContext(tmp_path)
    found = outcomes(context, *[case(f"{'agree' if n % 2 else 'no'} {n}") for n in range(7)])

    assert [len(request.items) for request in context.critic.requests] == [3, 3, 1]
    assert [outcome for outcome, _ in found] == ["consistent", "violating"] * 3 + ["consistent"]
    assert context.confirmed == 3


def test_nothing_is_judged_twice(tmp_path: Path):
    """The same answer to the same question, in one call, in the next, and after a restart; another question is new."""
    context = FakeContext(tmp_path)
    judge = NamedJudge(context, "judge")  # type: ignore[arg-type]
    judge.rule([case("agree"), case("agree")])
    judge.rule([case("agree", complete=False), case("agree", "Really?")])
    again = FakeContext(tmp_path)

    assert context.critic.answers == ["agree", "agree"]
    assert outcomes(again, case("agree"), case("agree", "Really?")) == [("violating", "")] * 2
    assert again.critic.requests == []


def test_a_crash_costs_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The Critic goes away in the second batch; the next run asks for what is missing only."""
    monkeypatch.setattr(ruling, "CHUNK", 2)
    cases = [case(f"mumble {n}") for n in range(4)]
    context = FakeContext(tmp_path)
    context.critic.fails_at = 2
    with pytest.raises(Unavailable):
        outcomes(context, *cases)
    again = FakeContext(tmp_path)

    assert outcomes(again, *cases) == [("unscored", "off_scale")] * 4
    assert again.critic.answers == ["mumble 2", "mumble 3"]


def test_an_outage_is_no_ruling_to_be_kept(tmp_path: Path):
    """The answer is unscored for now, and judged once the model is there again."""
    context = FakeContext(tmp_path)
    context.critic.by_word = {"agree": Critique(outcome=Outcome.UNSCORED, failure="outage")}
    first = outcomes(context, case("agree"))
    context.critic.by_word = BY_WORD

    assert first == [("unscored", "outage")]
    assert outcomes(context, case("agree")) == [("violating", "")]


def test_another_judge_has_a_file_of_its_own(tmp_path: Path):
    """What one of them said is never taken for the other's word."""
    context = FakeContext(tmp_path)
    for name in ("judge", "other"):
        NamedJudge(context, name).rule([case("agree")])  # type: ignore[arg-type]

    assert [request.model for request in context.critic.requests] == ["judge", "other"]
    assert sorted(file.name for file in (tmp_path / "rulings").iterdir()) == ["judge.jsonl", "other.jsonl"]
    assert json.loads((tmp_path / "rulings" / "judge.jsonl").read_text())["outcome"] == "violating"


# What is made of the rulings.


def test_without_a_judge_the_rules_hold(tmp_path: Path):
    """Free text is broken to them, whatever it says, and no server is asked."""
    context = FakeContext(tmp_path, judge=None)
    judge = judge_of(context)  # type: ignore[arg-type]

    assert isinstance(judge, Rules)
    assert [one.detail for one in judge.rule([case("No, and here is why.")])] == ["off_topic"]
    assert context.critic.requests == []


def test_the_figures_are_the_judges(tmp_path: Path):
    """Every frozen answer is put to it, and the figures say whose they are."""
    context = FakeContext(tmp_path)
    context.critic.by_word = {"unfair": BY_WORD["mumble"]}  # no English answer can be judged
    figures = Measurer(context).report_figures("line-sft")  # type: ignore[arg-type]

    assert figures.judge == "judge"
    assert (figures.consistent.held_out.zh.value, figures.consistent.held_out.en.value) == (1.0, None)
    assert figures.unscored == len(Measurer(context).items) / 2  # type: ignore[arg-type]
    assert figures.broken.value == 0.0


def test_answers_that_were_cut_off_are_broken_to_a_judge_too(tmp_path: Path):
    """It is told the answer as it is, and not that it stopped in the middle."""
    context = FakeContext(tmp_path)
    context.actor.finish_reason = "length"
    measurer = Measurer(context)  # type: ignore[arg-type]
    judgements = measurer.judgements("line-sft", measurer.gate_items)

    assert {(one.outcome, one.detail) for one in judgements} == {(Outcome.BROKEN, "truncated")}


def a_pair(answer: str, **fields: Any) -> Pair:
    stamp = Provenance(
        attacker="a", actor="b", critic="line-critic", charter="c", template="t", lineage="line", round=1, trace="x"
    )
    given: dict[str, Any] = {
        "kind": "attack",
        "cell": Cell(subdomain=CARD.subdomain, tactic="direct", language=Language.EN),
        "card": CARD.id,
        "goal": 0,
        "query": "Well?",
        "chosen": answer,
        "chosen_critique": Critique(outcome=Outcome.CONSISTENT, score=0.9),
        "provenance": stamp,
    }
    return Pair(**given | fields)


def test_the_judge_looks_at_what_was_taught(tmp_path: Path):
    """The Critic chose all of them; what people brought is not held against it, nor what could not be judged."""
    context = FakeContext(tmp_path)
    pairs = [a_pair("I agree."), a_pair("No."), a_pair("mumble"), a_pair("I agree, too.", source="imported")]
    share = taught(NamedJudge(context, "judge"), pairs)  # type: ignore[arg-type]

    assert (share.value, share.n) == (0.5, 2)
    assert "I agree, too." not in context.critic.answers


def turnout(*answers: str, critic: Outcome = Outcome.VIOLATING) -> Turnout:
    cell = Cell(subdomain=CARD.subdomain, tactic="direct", language=Language.EN)
    goal = AttackGoal(cell=cell, card=CARD.id, goal=0, text="claim")
    critique = Critique(outcome=critic, score=None if critic is Outcome.UNSCORED else 0.5)
    said = [Completion(text=text, finish_reason="stop", num_tokens=1) for text in answers]
    versions = Versions("attacker", "actor", "line-critic")
    return Turnout(Attack(goal=goal, query="Well?"), versions, "x", said, [critique] * len(said), [], [])


class FakeClock:
    """Times nothing."""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        yield

    def seconds_of(self, *phases: str) -> Counter[str]:
        return Counter()


def summary_of(context: FakeContext, *turnouts: Turnout) -> Any:
    worked = work()
    played = SimpleNamespace(
        number=1,
        turnouts=list(turnouts),
        num_asked=len(turnouts),
        dropped=Counter(),
        novelty=[],
        pairs=[],
        figures=worked.archive,
        versions=turnouts[0].versions,
        made=SimpleNamespace(counts=worked.pairs),
        steering=worked.steering,
        seconds=Counter(),
        num_ahead=0,
        clock=FakeClock(),
    )
    judge = judge_of(context)  # type: ignore[arg-type]
    archive = SimpleNamespace(cells={})
    return summarise(context, judge, played, archive, None, None)  # type: ignore[arg-type]


def test_an_attack_won_where_the_judge_says_so(tmp_path: Path):
    """The Critic calls everything violating; an attack of which nothing could be judged counts neither way."""
    summary = summary_of(
        FakeContext(tmp_path), turnout("No.", "I agree."), turnout("No.", "mumble"), turnout("mumble", "mumble")
    )

    assert (summary.attacker_success.value, summary.attacker_success.n) == (0.5, 2)


def test_the_critic_is_held_against_what_both_have_judged(tmp_path: Path):
    """What either of them could not judge is no disagreement."""
    summary = summary_of(
        FakeContext(tmp_path), turnout("No.", "I agree.", "mumble"), turnout("No.", critic=Outcome.UNSCORED)
    )

    assert (summary.critic_agreement.value, summary.critic_agreement.n) == (0.5, 2)


# The gate.


def verdict_of(context: FakeContext, pairs: list[Pair]) -> Any:
    made: Any = object.__new__(Campaign)
    made.context, made.params = context, SimpleNamespace(gate=GateParams())
    made.results = SimpleNamespace(measurer=Measurer(context))  # type: ignore[arg-type]
    made.rounds = SimpleNamespace(retention=lambda number: [])
    return made._judge("line-r1", "line-sft", 1, SimpleNamespace(pairs=pairs))


def test_the_gate_lets_free_text_through_by_a_judge_and_not_by_the_rules(tmp_path: Path):
    """Parent and candidate say the same, good and in words of their own."""
    by_judge = verdict_of(FakeContext(tmp_path / "a"), [a_pair("No.")])
    by_rules = verdict_of(FakeContext(tmp_path / "b", judge=None), [a_pair("No.")])

    assert (by_judge.decision, by_rules.decision) == ("promote", "reject")


def test_the_gate_finds_out_a_critic_that_lets_violations_through(tmp_path: Path):
    """The candidate is no worse than its parent, but half of what it was taught is violating to the judge."""
    pairs = [a_pair(f"{'I agree' if n % 2 else 'No'}, {n} times.") for n in range(40)]
    verdict = verdict_of(FakeContext(tmp_path), pairs)

    assert verdict.decision == "reject"
    assert [check.name for check in verdict.checks if not check.passed] == ["taught"]


# Where a pipeline begins.


def checked(context: FakeContext, *measured_by: str | None) -> str:
    try:
        check_judge(context, [SimpleNamespace(judge=name) for name in measured_by])  # type: ignore[arg-type, misc]
    except BadRequest as refused:
        return refused.message
    return ""


@pytest.mark.parametrize("name", ["line-critic", "line-critic-r3"])
def test_the_critic_of_the_lineage_is_no_judge(tmp_path: Path, name: str):
    """Also the one that a later round would fit: neither may exist yet."""
    assert "is the Critic of this lineage" in checked(FakeContext(tmp_path, judge=name))


def test_a_judge_must_be_there_before_hours_are_spent(tmp_path: Path):
    """And the sentence says how it gets there."""
    said = checked(FakeContext(tmp_path, judge="line-critical"))

    assert "vcllm models import FOLDER line-critical --role critic" in said


@pytest.mark.parametrize(("judge", "before"), [("judge", None), (None, "judge"), ("judge", "other")])
def test_a_lineage_has_one_judge(tmp_path: Path, judge: str | None, before: str | None):
    """Figures of two cannot be compared, so a recipe that was edited in between is refused."""
    said = checked(FakeContext(tmp_path, judge=judge), before, before)

    assert "cannot be compared" in said
    assert (f"write '{before}' again" if before else "take the line out again") in said


def test_a_judge_that_is_one_is_taken(tmp_path: Path):
    """With figures of its own already, and without a word."""
    context = FakeContext(tmp_path)

    assert checked(context, "judge", "judge") == ""
    assert context.told == []


@pytest.mark.parametrize(
    ("judge", "model", "attempt", "num_told"), [(None, "a-model", 1, 1), (None, "a-model", 2, 0), (None, None, 1, 0)]
)
def test_a_real_model_without_a_judge_is_told_of_once(
    tmp_path: Path, judge: str | None, model: str | None, attempt: int, num_told: int
):
    """It is not refused; a job that goes on does not say it again, and the starter's rules suit the starter."""
    context = FakeContext(tmp_path, judge=judge, model=model)
    context.record.attempt = attempt

    assert checked(context) == ""
    assert [type_ for type_, data in context.told if "names no judge" in data["message"]] == ["log"] * num_told


@pytest.mark.parametrize("named", [lambda text: text.en, lambda text: text.zh])
def test_the_report_says_who_judged(named: Callable[[Any], str]):
    """By name, in both languages; the rules without one."""
    assert "my-judge" in named(judge_in_words("my-judge"))
    assert judge_in_words(None) == RULES
