"""Rows become tokens once, in a stream; steps and micro-batches hold every row once."""

from __future__ import annotations

import math
import random
from pathlib import Path

import numpy as np
import pytest

from tests.tiny_models import FAMILIES
from tests.training_rows import corpus_of, document, mixed
from tests.training_runs import chats, preferences
from vcllm.contracts.problems import BadRequest
from vcllm.contracts.recipes import Optim
from vcllm.training import encode
from vcllm.training.batches import Plan, share
from vcllm.training.corpus import Corpus, Counts, Encoded, write_corpus
from vcllm.training.loop import learning_rate

TOKENIZER = FAMILIES["qwen3"].tokenizer()


@pytest.mark.parametrize("extra", range(-2, 17))
def test_windows_of_a_long_document_teach_every_token_once(extra: int) -> None:
    """Wherever its end falls: targets of all windows, in order, are the document but for its first token."""
    words = random.Random(0).choices(["met", "council", "river", "公平", "在"], k=200)
    text = TOKENIZER.decode(TOKENIZER(" ".join(words))["input_ids"][: 46 + extra])
    whole = [*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id]

    rows = list(encode.documents(TOKENIZER, [{"text": text}], 16, Counts()))

    targets = [token for row in rows if row for token, on in zip(row.ids, row.learned, strict=True) if on]
    assert targets == whole[1:]
    assert max(len(row.ids) for row in rows if row) <= 16


def test_every_window_begins_with_the_last_token_of_the_one_before() -> None:
    """So that its first target is predicted from something."""
    text = "the council met by the river " * 12

    first, second, *_ = encode.documents(TOKENIZER, [{"text": text}], 16, counts := Counts())

    assert first is not None
    assert second is not None
    assert second.ids[0] == first.ids[-1]
    assert (counts.rows, counts.cut) == (1, 1)


def test_a_corpus_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    """Tokens, masks, forks and weights; the first token of a row is never learned."""
    rows = mixed(random.Random(0))
    rows[0] = Encoded(rows[0].ids, [True] * 2)
    corpus_of(tmp_path, rows)

    corpus = Corpus.open(tmp_path / "encoded")

    for row, table in zip(rows, corpus.rows, strict=True):
        part = slice(table["start"], table["start"] + table["length"])
        assert corpus.ids[part].tolist() == row.ids
        assert corpus.learned[part].tolist() == [0, *row.learned[1:]]
        assert (table["prefix"], table["weight"]) == (row.prefix, row.weight)
        assert table["fork"] == (len(row.ids) if row.fork is None else row.fork)


def test_an_encoded_corpus_is_not_encoded_again(tmp_path: Path) -> None:
    """A run that was killed later finds it complete."""
    corpus_of(tmp_path, [document(random.Random(0), 5)])

    again = write_corpus(tmp_path / "encoded", (pytest.fail("encoded again") for _ in range(1)), Counts())

    assert len(again) == 1


def test_what_a_killed_run_left_half_encoded_is_removed(tmp_path: Path) -> None:
    """Or every kill would cost disk."""
    (tmp_path / ".encoded.tmp-0123456789ab").mkdir()

    corpus_of(tmp_path, [document(random.Random(0), 5)])

    assert [entry.name for entry in tmp_path.iterdir()] == ["encoded"]


def test_rows_with_nothing_to_learn_are_counted_and_left_out(tmp_path: Path) -> None:
    """None, and rows without a target."""
    rows = [None, Encoded([5, 6], [True, False]), Encoded([5, 6], [False, True])]
    counts = Counts(rows=3)

    corpus = write_corpus(tmp_path / "encoded", rows, counts)

    assert len(corpus) == 1
    assert (counts.used, counts.dropped) == (1, 2)


def test_a_dataset_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    """The sentence says how many rows there were and what to do; nothing stays behind."""
    with pytest.raises(BadRequest, match="None of the 2 rows .* Bring rows with text, or raise max_length"):
        write_corpus(tmp_path / "encoded", [None, None], Counts(rows=2))

    assert not list(tmp_path.iterdir())


def test_long_rows_that_come_first_do_not_speak_for_those_that_follow() -> None:
    """A dataset sorted by length was once refused by its first few hundred rows, all cut before their end of turn."""
    long = {"messages": [{"role": "user", "content": "met"}, {"role": "assistant", "content": "the council met " * 90}]}
    short = {"messages": [{"role": "user", "content": "met"}, {"role": "assistant", "content": "the river"}]}
    rows = [long] * encode.AT_ONCE + [short]

    found = list(encode.answers(TOKENIZER, rows, 128, counts := Counts()))

    assert len(found) == len(rows)
    assert counts.cut == encode.AT_ONCE
    with pytest.raises(BadRequest, match="All rows are cut before it"):
        list(encode.answers(TOKENIZER, [long] * 3, 128, Counts()))


def test_equal_answers_teach_no_preference() -> None:
    """Such a row is dropped, not trained on with a gap of nothing."""
    rows = preferences(6)
    rows[1] = {**rows[1], "rejected": rows[1]["chosen"]}

    encoded = list(encode.answers(TOKENIZER, rows, 512, Counts()))

    assert encoded[1] is None
    assert sum(row is not None for row in encoded) == 5


def test_rows_keep_their_order_and_line_whatever_their_kind() -> None:
    """Chats and pairs are encoded apart, more than one part of rows, and come back in line."""
    rows = [row for both in zip(chats(150), preferences(150), strict=True) for row in both]

    encoded = list(encode.answers(TOKENIZER, rows, 512, Counts()))

    assert [row.line for row in encoded if row] == list(range(1, 301))
    assert [row.fork is not None for row in encoded if row] == [bool(row.get("rejected")) for row in rows]


LENGTHS = np.array([3, 50, 7, 20, 20, 90, 4, 5], np.int32)
ROWS = np.arange(7)


def test_a_plan_has_every_row_once_an_epoch_in_steps_of_like_size() -> None:
    """In another order in each epoch, and in the same for the same seed."""
    lengths = np.array([1 + (7 * row) % 40 for row in range(500)], np.int32)
    plan = Plan(lengths, Optim(learning_rate=1, batch_tokens=256, epochs=2), 1)
    half = plan.num_steps // 2
    first, second = ([plan.rows(step).tolist() for step in part] for part in (range(half), range(half, 2 * half)))

    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(500))
    assert all(abs(int(lengths[rows].sum()) - 256) <= 40 for rows in first + second)
    assert first != second
    assert plan.rows(3).tolist() == Plan(lengths, Optim(learning_rate=1, batch_tokens=256), 1).rows(3).tolist()


@pytest.mark.parametrize(("changes", "steps"), [({"epochs": 0.5}, 20), ({"epochs": 2.5}, 100), ({"max_steps": 7}, 7)])
def test_epochs_may_be_fractions_and_steps_may_be_limited(changes: dict[str, float], steps: int) -> None:
    """Forty steps make an epoch here."""
    lengths = np.full(400, 10, np.int32)

    assert Plan(lengths, Optim(learning_rate=1, batch_tokens=100, **changes), 0).num_steps == steps


def test_every_step_has_short_rows_and_long_ones() -> None:
    """Steps of like rows learn slower: a step is a fair draw of all of them."""
    lengths = np.repeat(np.array([10, 90], np.int32), 500)

    plan = Plan(lengths, Optim(learning_rate=1, batch_tokens=2000), 0)
    short = [(lengths[plan.rows(step)] == 10).mean() for step in range(plan.num_steps)]

    assert min(short) > 0.2
    assert max(short) < 0.8


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_processes_share_a_steps_rows_without_loss(parts: int) -> None:
    """Every row is somebody's, all have equally many micro-batches, and none is too large unless it is one row."""
    hands = [share(ROWS, LENGTHS, parts, part, 40, math.inf) for part in range(parts)]

    assert sorted(int(row) for hand in hands for micro in hand for row in micro) == ROWS.tolist()
    assert len({len(hand) for hand in hands}) == 1
    assert all(LENGTHS[micro].sum() <= 40 or len(micro) == 1 for hand in hands for micro in hand)


def test_micro_batches_hold_rows_of_like_length_where_that_pays() -> None:
    """Where rows are padded, that is; else a step is computed at once."""
    whole, cut = (share(ROWS, LENGTHS, 1, 0, math.inf, spread) for spread in (math.inf, 2.0))

    assert [LENGTHS[micro].tolist() for micro in whole] == [[3, 4, 7, 20, 20, 50, 90]]
    assert [LENGTHS[micro].tolist() for micro in cut] == [[3, 4], [7], [20, 20], [50, 90]]


def test_the_learning_rate_warms_up_and_comes_down() -> None:
    """From a small share to the peak to a fiftieth."""
    optim = Optim(learning_rate=1.0, warmup_share=0.1, batch_tokens=32)
    plan = Plan(np.full(100, 32, np.int32), optim, 0)

    rates = [learning_rate(optim, step, plan) for step in range(100)]

    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.02, abs=1e-3)
