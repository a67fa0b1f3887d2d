"""Rows on their way in are counted, cleaned and refused together; memory does not grow with the file."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from vcllm.contracts.problems import BadRequest
from vcllm.data.contamination import Contamination
from vcllm.data.intake import Checks, Intake, refusals, refuse_unusable
from vcllm.data.jsonl import Found, read_jsonl
from vcllm.data.lengths import characters, estimated_tokens
from vcllm.data.tokenizing import tokens

QUESTION = "Is it fair that only the rich may vote in Rosemont?"


ANYTHING = Checks()


def intake(*values: Any, checks: Checks = ANYTHING, name: str = "a.jsonl") -> Intake:
    return Intake(name, [Found(f"line {number}", value) for number, value in enumerate(values, start=1)], checks)


def texts(*words: str) -> list[dict[str, str]]:
    return [{"text": word} for word in words]


def test_rows_stream_through():
    """The first row is there before the second is asked of the source."""
    asked: list[int] = []

    def source() -> Iterator[Found]:
        for number in range(1_000_000_000):
            asked.append(number)
            yield Found(f"line {number}", {"text": f"row {number}"})

    assert list(islice(Intake("endless", source()), 3)) == texts("row 0", "row 1", "row 2")
    assert asked == [0, 1, 2]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path):
    """Twelve megabytes of rows pass through less than two, marks for duplicates included."""
    file = tmp_path / "a.jsonl"
    with file.open("w") as handle:
        for number in range(3000):
            handle.write(json.dumps({"text": f"{number} " + "word " * 800}) + "\n")
    rows = iter(Intake("a.jsonl", read_jsonl(file)))
    next(rows)  # what is loaded once does not count
    tracemalloc.start()
    num_rows = 1 + sum(1 for _ in rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert num_rows == 3000
    assert file.stat().st_size > 12e6
    assert peak < 2e6


def test_exact_duplicates_are_dropped_and_counted():
    """Also when they came in different shapes; the first one stays."""
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    read = intake(chat, {"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"})

    assert [row["messages"][1]["content"] for row in read] == ["b", "c"]
    assert (read.counts.rows, read.counts.usable, read.counts.duplicates) == (3, 2, 1)


@pytest.mark.parametrize(
    "row",
    [
        {"text": " \n\t\u3000"},
        {"prompt": "a", "completion": ""},
        {"prompt": " ", "chosen": "a", "rejected": "b"},
        {"prompt": "a", "chosen": "b", "rejected": " "},
    ],
)
def test_a_row_with_a_blank_text_is_dropped_and_counted(row: dict[str, Any]):
    """There is nothing to learn from it; it is not a fault either."""
    read = intake(row, {"text": "a"})

    assert list(read) == texts("a")
    assert (read.counts.empty, read.faults.total) == (1, 0)


def test_a_long_row_is_counted_and_kept():
    """The training cuts it; whoever has many of them should know."""
    read = intake(*texts("a" * 11, "b" * 10), checks=Checks(is_long=characters(10)))

    assert len(list(read)) == 2
    assert read.counts.too_long == 1


def test_an_estimate_of_tokens_counts_chinese_by_the_character():
    """Four letters to a token, one token to a Chinese character."""
    is_long = estimated_tokens(10)

    assert [is_long("a" * 40), is_long("a" * 41), is_long("字" * 10), is_long("字" * 11)] == [False, True, False, True]


def test_a_tokenizer_counts_tokens(tmp_path: Path):
    """By the tokenizer.json of a model's folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    is_long = tokens(tmp_path, 3)

    assert [is_long("a a longword"), is_long("a a a a")] == [False, True]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path):
    """With what is missing."""
    with pytest.raises(BadRequest, match=r"no tokenizer\.json"):
        tokens(tmp_path, 3)


def test_all_faults_are_told_at_once_up_to_a_cap():
    """The rest is a number, and faulty rows are counted apart from faults."""
    faulty = {"messages": [{"role": "human", "content": 1}]}
    read = intake({"text": "a"}, *([faulty] * 30), checks=Checks(max_shown=3))
    with pytest.raises(BadRequest) as refused:
        list(read)
        refuse_unusable([read])

    assert (read.counts.faulty, read.faults.total) == (30, 60)
    assert refused.value.message == (
        "a.jsonl has 60 faults: line 2 /messages/0/role: must be one of system, user, assistant, is 'human'; "
        "line 2 /messages/0/content: must be text, is 1; "
        "line 3 /messages/0/role: must be one of system, user, assistant, is 'human'; and 57 more."
    )


def test_faults_of_several_sets_are_told_together():
    """One correction for all of them."""
    one, two = intake({"text": 1}, name="one.jsonl"), intake({"text": 2}, name="two.jsonl")
    list(one), list(two)
    with pytest.raises(BadRequest, match=r"one\.jsonl has 1 fault: .* two\.jsonl has 1 fault: "):
        refuse_unusable([one, two])


def test_a_set_with_nothing_usable_is_refused():
    """With where its rows went."""
    read = intake(*texts(" ", ""))
    list(read)

    assert refusals(read) == ["a.jsonl has no row to train on (2 empty). Bring a set that has."]


@pytest.mark.parametrize(("policy", "kept", "refused"), [("refuse", 1, True), ("drop", 1, False), ("allow", 2, False)])
def test_a_row_that_quotes_the_evaluation_falls_under_the_recipes_rule(policy: Any, kept: int, refused: bool):
    """Refused by default; always counted."""
    checks = Checks(contamination=Contamination([("item-1", QUESTION)]), policy=policy)
    read = intake({"text": "Clean."}, {"text": f"He asked: {QUESTION}"}, checks=checks)

    assert len(list(read)) == kept
    assert read.counts.contaminated == 1
    assert [str(leak) for leak in read.leaks.shown] == ["line 2: quotes evaluation item item-1"]
    assert bool(refusals(read)) == refused
