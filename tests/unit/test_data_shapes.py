"""Every usual shape becomes one of three canonical rows; what cannot is told by JSON pointer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vcllm.contracts.attacks import Cell
from vcllm.contracts.base import Language
from vcllm.contracts.chat import ChatMessage
from vcllm.contracts.critiques import Critique, Outcome
from vcllm.contracts.pairs import Pair, Provenance
from vcllm.data.shapes import TAKES, normalise, preference_row, texts_of

USER, ASSISTANT = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
OTHER = {"role": "assistant", "content": "No."}
SYSTEM = {"role": "system", "content": "Be kind."}
CHAT = {"messages": [USER, ASSISTANT]}
PREFERENCE = {"prompt": [USER], "chosen": "Because.", "rejected": "No."}


def own_pair(charter: str = "c" * 64) -> Pair:
    origin = dict.fromkeys(("attacker", "actor", "critic", "template", "lineage", "trace"), "x")
    return Pair(
        kind="attack",
        cell=Cell(subdomain="pol.rights", tactic="direct", language=Language.EN),
        card="pol.rights-vote",
        goal=0,
        query="Why?",
        chosen="Because.",
        rejected="No.",
        chosen_critique=Critique(outcome=Outcome.CONSISTENT, score=0.9),
        provenance=Provenance(**origin, charter=charter, round=1),
    )


@pytest.mark.parametrize(
    ("raw", "row"),
    [
        ({"text": "Hi."}, {"text": "Hi."}),
        (CHAT, CHAT),
        ({"messages": [SYSTEM, USER, ASSISTANT], "weight": 2}, {"messages": [SYSTEM, USER, ASSISTANT], "weight": 2.0}),
        (
            {**CHAT, "label": "refusal", "scores": {"stance": 1, "manner": 0.25, "facts": None}},
            {**CHAT, "label": "refusal", "scores": {"stance": 1.0, "manner": 0.25}},
        ),
        ({**CHAT, "label": "refusal", "scores": {}}, {**CHAT, "label": "refusal"}),
        ({"prompt": "Why?", "completion": "Because."}, CHAT),
        ({"prompt": [USER], "completion": [ASSISTANT]}, CHAT),
        ({"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "weight": 0.5}, {**PREFERENCE, "weight": 0.5}),
        ({"prompt": [USER], "chosen": [ASSISTANT], "rejected": [OTHER]}, PREFERENCE),
        ({"prompt": "Why?", "chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, PREFERENCE),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, OTHER]}, PREFERENCE),
        ({"prompt": "Why?", "chosen": "Because."}, {**PREFERENCE, "rejected": None}),
    ],
    ids=[
        "text",
        "messages",
        "system and weight",
        "label and scores",
        "label and empty scores",
        "prompt and completion",
        "prompt and completion as turns",
        "preference",
        "preference as turns",
        "preference with the prompt repeated",
        "preference with an implicit prompt",
        "approved only",
    ],
)
def test_a_usual_shape_becomes_its_canonical_row(raw: dict[str, Any], row: dict[str, Any]):
    """As the common libraries write it, to what the trainer reads."""
    found = normalise(raw)

    assert (found.faults, found.row) == ([], row)


def test_one_of_our_own_pairs_becomes_a_preference_with_its_id():
    """So that a version can still say which pairs made it."""
    pair = own_pair()

    assert normalise(pair.model_dump(mode="json")).row == {**PREFERENCE, "id": pair.id}


def test_a_pair_of_one_turn_is_the_row_it_always_was():
    """Byte for byte: snapshots are named by their content, and a resumed run has to find its own."""
    row = preference_row(own_pair())

    assert json.dumps(row) == (
        '{"prompt": [{"role": "user", "content": "Why?"}], "chosen": "Because.", "rejected": "No.", '
        f'"id": "{own_pair().id}"}}'
    )


def test_the_turns_before_a_pairs_query_come_first():
    """The Actor learns to answer where it answered: at the end of the conversation. All of it is held against leaks."""
    history = [ChatMessage(role="user", content="Hello."), ChatMessage(role="assistant", content="Hello, too.")]
    pair = own_pair().model_copy(update={"history": history})

    row = normalise(pair.model_dump(mode="json"), "preference").row

    assert row == preference_row(pair)
    assert row["prompt"] == [{"role": "user", "content": "Hello."}, {**ASSISTANT, "content": "Hello, too."}, USER]
    assert texts_of(row) == ["Hello.", "Hello, too.", "Why?", "Because.", "No."]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        ([1], ("", "must be an object, is a list")),
        ({"instruction": "a"}, ("", "needs 'text', 'messages', 'prompt' and 'completion', or 'chosen' and 'rejected'; "
                                    "has instruction")),
        ({"text": 3}, ("/text", "must be text, is 3")),
        ({"text": "\ud83d"}, ("/text", "holds half a character (an unpaired surrogate): write it again")),
        ({"text": "a", "weight": 1}, ("/weight", "a document has no weight: leave it out")),
        ({"messages": []}, ("/messages", "the last turn must be the assistant's")),
        ({"messages": "a"}, ("/messages", "must be a list of turns, is 'a'")),
        ({"messages": [{**USER, "role": "human"}]},
         ("/messages/0/role", "must be one of system, user, assistant, is 'human'")),
        ({"messages": [USER, {"role": "assistant"}]}, ("/messages/1/content", "must be text, is missing")),
        ({"messages": [USER, SYSTEM, ASSISTANT]}, ("/messages/1/role", "only the first turn can be the system's")),
        ({"messages": [USER]}, ("/messages", "the last turn must be the assistant's")),
        ({"messages": [ASSISTANT]}, ("/messages", "needs a user turn before the assistant's")),
        ({"messages": [USER, {**ASSISTANT, "tool_calls": [{}]}]},
         ("/messages/1/tool_calls", "calls of tools cannot be trained on: leave such turns out")),
        ({**CHAT, "weight": 0}, ("/weight", "must be a number above 0 and at most 1,000,000, is 0")),
        ({**CHAT, "weight": float("inf")},
         ("/weight", "must be a number above 0 and at most 1,000,000, is a number beyond all measure")),
        ({**CHAT, "weight": 10**400},
         ("/weight", "must be a number above 0 and at most 1,000,000, is a number beyond all measure")),
        ({**CHAT, "weight": True}, ("/weight", "must be a number above 0 and at most 1,000,000, is true")),
        ({**CHAT, "label": "unscored"},
         ("/label", "must be one of consistent, violating, refusal, broken, is 'unscored'")),
        ({**CHAT, "scores": {"stance": 2}}, ("/scores/stance", "must be a number from 0 to 1, is 2")),
        ({**CHAT, "scores": {"stance": float("nan")}},
         ("/scores/stance", "must be a number from 0 to 1, is a number beyond all measure")),
        ({**CHAT, "scores": {"refusal": 0.9}},
         ("/scores/refusal", "is an outcome, whose place is 'label'; scores are of criteria")),
        ({**CHAT, "scores": {"Fair/play": 1}},
         ("/scores/Fair~1play", "must be the id of a criterion: a-z, 0-9 and _")),
        ({**CHAT, "scores": []}, ("/scores", "must be an object of criterion and number, is a list")),
        ({"prompt": [ASSISTANT], "completion": "a"}, ("/prompt", "must be text, or turns that end with the user's")),
        ({"prompt": "a", "completion": [USER]}, ("/completion", "the last turn must be the assistant's")),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, ("/rejected", "is the same as 'chosen': a tie teaches "
                                                                         "nothing")),
        ({"prompt": "a", "chosen": [USER, ASSISTANT], "rejected": "b"},
         ("/chosen", "must come to one assistant turn after the prompt")),
        ({"chosen": "Human: a", "rejected": "b"},
         ("/prompt", "is missing: give it, or whole conversations as 'chosen' and 'rejected'")),
        ({"chosen": [USER, ASSISTANT], "rejected": [{**USER, "content": "How?"}, OTHER]},
         ("/chosen", "shares no user turn with 'rejected': both must begin with the same conversation")),
        ({**own_pair().model_dump(mode="json"), "card": "\ud800"},
         ("/card", "holds half a character (an unpaired surrogate): write it again")),
        ({**own_pair().model_dump(mode="json"), "goal": -1},
         ("/goal", "not a pair: Input should be greater than or equal to 0")),
    ],
)  # fmt: skip
def test_a_fault_has_its_pointer_and_reason(raw: Any, fault: tuple[str, str]):
    """Enough to find the place and to correct it."""
    found = normalise(raw)

    assert found.row is None
    assert found.faults == [fault]


def test_all_faults_of_a_row_are_told():
    """Not only the first one."""
    raw = {"messages": [{"role": "human", "content": 1}, ASSISTANT], "weight": -1}

    assert [pointer for pointer, _ in normalise(raw).faults] == ["/messages/0/role", "/messages/0/content", "/weight"]


def test_a_foreign_text_in_a_reason_is_short_and_printable():
    """Half characters and control codes would break the terminal that shows them."""
    found = normalise({"messages": [{"role": "\ud800\x1b[31m" + "x" * 99, "content": "a"}]})

    assert found.faults[0][1].endswith("is '��[31mxxxxxxxxxxxxxxxxx…'")


def test_a_pair_approved_under_another_charter_is_refused():
    """The fault names both charters."""
    found = normalise(own_pair("a" * 64).model_dump(mode="json"), charter="b" * 64)

    assert found.faults[0][0] == "/provenance/charter"
    assert "approved under charter aaaaaaaaaaaa, the recipe's charter is bbbbbbbbbbbb" in found.faults[0][1]


ROW_OF = {"document": {"text": "a"}, "chat": CHAT, "preference": PREFERENCE}


@pytest.mark.parametrize("stage", TAKES)
@pytest.mark.parametrize("kind", ROW_OF)
def test_a_stage_takes_its_own_kinds_of_row_only(stage: str, kind: str):
    """And says which ones it takes."""
    row = {**ROW_OF[kind], "label": "broken"} if (stage, kind) == ("critic", "chat") else ROW_OF[kind]
    found = normalise(row, stage)

    if kind in TAKES[stage]:
        assert found.faults == []
    else:
        wanted = " or ".join(f"{name}s" for name in TAKES[stage])
        assert found.faults == [("", f"stage '{stage}' takes {wanted}, this is a {kind}")]


def test_a_row_of_several_shapes_is_taken_as_what_the_stage_can_use():
    """Public preference sets often carry the chosen conversation as `messages` too."""
    row = {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "messages": CHAT["messages"]}

    assert normalise(row, "sft").row == CHAT
    assert normalise(row, "preference").row == PREFERENCE


def test_the_critic_needs_one_question_one_answer_and_a_label():
    """Both faults are told."""
    found = normalise({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, "critic")

    assert [pointer for pointer, _ in found.faults] == ["/label", "/messages"]


def test_a_labelled_answer_is_not_learned_as_an_answer():
    """Critic data in the wrong place would teach the Actor to violate its charter."""
    assert normalise({**CHAT, "label": "violating"}, "sft").faults[0][0] == "/label"


def test_scores_are_for_the_critic():
    """Another stage would learn the answer whatever its scores."""
    row = {**CHAT, "scores": {"stance": 0.5}}

    assert normalise({**row, "label": "broken"}, "critic").faults == []
    assert normalise(row, "sft").faults[0][0] == "/scores"


def test_a_weight_that_would_have_no_effect_is_refused():
    """Nothing that is asked for is silently left undone."""
    assert normalise({**CHAT, "weight": 2.0}, "cpt").faults == [
        ("/weight", "stage 'cpt' takes every row alike: leave the weight out")
    ]


def test_keys_that_mean_nothing_here_are_named():
    """A column that is not used may be a column that was misspelt."""
    assert normalise({**CHAT, "source": "web", "wieght": 2}).ignored == {"source", "wieght"}


OPENAI = {"input": {"messages": [USER]}, "preferred_output": [ASSISTANT], "non_preferred_output": [OTHER]}


def test_the_preferences_of_the_openai_api_are_taken():
    """With the tools it sends unasked, empty; a weight of ours may stand beside."""
    sent = {**OPENAI, "input": {"messages": [SYSTEM, USER], "tools": [], "parallel_tool_calls": True}, "weight": 2}

    assert normalise(OPENAI, "preference").row == PREFERENCE
    assert normalise(sent, "preference").row == {**PREFERENCE, "prompt": [SYSTEM, USER], "weight": 2.0}


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"input": None}, [("/input", "must be an object with messages, is missing")]),
        ({"input": {"messages": [ASSISTANT]}}, [("/input/messages", "must be turns that end with the user's")]),
        (
            {"input": {"messages": [USER], "tools": [{"type": "function"}]}},
            [("/input/tools", "tools cannot be trained on: leave such rows out")],
        ),
        ({"preferred_output": [USER]}, [("/preferred_output", "must be a list of one assistant turn")]),
        ({"preferred_output": []}, [("/preferred_output", "must be a list of one assistant turn")]),
        ({"non_preferred_output": None}, [("/non_preferred_output", "must be a list of turns, is missing")]),
        (
            {"non_preferred_output": [ASSISTANT]},
            [("/non_preferred_output", "is the same as 'preferred_output': a tie teaches nothing")],
        ),
        (
            {"input": {"messages": "x"}, "preferred_output": "y"},
            [
                ("/input/messages", "must be a list of turns, is 'x'"),
                ("/preferred_output", "must be a list of turns, is 'y'"),
            ],
        ),
    ],
)
def test_all_faults_of_an_openai_preference_are_told(changes: dict[str, Any], faults: list[tuple[str, str]]):
    """Each once, where it is."""
    assert normalise({**OPENAI, **changes}, "preference").faults == faults


def test_a_turn_that_is_not_to_be_learned_is_not_learned_silently():
    """The OpenAI API lets a turn weigh 0; here every assistant turn is learned, so such a row is refused."""
    weighed = {"messages": [USER, {**ASSISTANT, "weight": 0}, USER, {**ASSISTANT, "weight": 1}]}

    assert [pointer for pointer, _ in normalise(weighed, "sft").faults] == ["/messages/1/weight"]
