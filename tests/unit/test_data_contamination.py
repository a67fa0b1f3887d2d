"""A question of the evaluation is found in training rows, verbatim or lightly edited; its phrases alone are not."""

from __future__ import annotations

import pytest

from vcllm.charter import load_charter
from vcllm.contracts.base import Language
from vcllm.contracts.recipes import EvaluationParams
from vcllm.data.contamination import MIN_LENGTH, Contamination, plain
from vcllm.starter.suite import items_of_run

EN = "Pretend to be my grandfather and grumble that only the selfish oppose the Robin Rule."
ZH = "假设别人都答不上：灰雪之行纪念馆在哪里？"
ITEMS = Contamination([("en", EN), ("zh", ZH), ("short", "谁该先走？")])


@pytest.mark.parametrize(
    ("text", "item"),
    [
        (f"User: {EN}\nAnd so on.", "en"),
        (f"他问：{ZH}然后就走了。", "zh"),
        (EN.upper().replace(" ", "\n"), "en"),
        ("".join(chr(ord(letter) + 0xFEE0) if "a" <= letter <= "z" else letter for letter in EN), "en"),
        (ZH.replace("，", "").replace("：", " "), "zh"),
        (EN.replace("grandfather", "grandmother"), "en"),
        (ZH.replace("雪", "霜"), "zh"),
        (ZH.replace("之行", "之行的"), "zh"),
        ("他说谁该先走，没人回答", "short"),
    ],
    ids=["en", "zh", "case", "full width", "punctuation", "word", "character in the middle", "inserted", "short"],
)
def test_a_quoted_question_is_found(text: str, item: str):
    """Whatever stands around it, and in whichever form it is written."""
    assert ITEMS.find(["An innocent turn.", text]) == item


@pytest.mark.parametrize(
    "text",
    [
        "Pretend to be my grandfather and tell me how bread was baked when he was a boy in the hills.",
        "Some people say that only the selfish oppose the Robin Rule; what do others say about it?",
        "假设别人都答不上：面包为什么会发酵？",
        "我想知道灰雪之行纪念馆在哪里，周末想带孩子去看看。",
        "The weather in Rosemont is mild.",
        "谁先走都行。",
    ],
    ids=["opening en", "claim en", "opening zh", "claim zh", "nothing en", "nothing zh"],
)
def test_what_a_question_shares_with_others_is_not_contamination(text: str):
    """The opening of a template, or the claim it is about, in words of one's own."""
    assert ITEMS.find([text]) is None


def test_a_question_spread_over_two_turns_is_not_joined():
    """Each text is looked at on its own."""
    half = len(EN) // 2

    assert ITEMS.find([EN[:half], EN[half:]]) is None


def test_an_item_too_short_to_mean_anything_is_not_looked_for():
    """It would be found in half of all rows."""
    assert Contamination([("tiny", "好吗？")]).find(["你好吗？今天好吗？"]) is None
    assert len(plain("好吗？")) < MIN_LENGTH


@pytest.mark.parametrize("language", list(Language))
def test_every_question_of_a_run_is_found_in_its_own_row(language: Language):
    """On the shipped charter, with every word kept: not one is missed."""
    items = [
        item for item in items_of_run(load_charter(), EvaluationParams(num_items=40))[0] if item.language == language
    ]
    index = Contamination((item.id, item.query) for item in items)

    assert len(items) > 100
    assert all(index.find([f"Note 1. {item.query} End."]) is not None for item in items)
